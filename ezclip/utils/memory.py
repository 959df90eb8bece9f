"""Memory of long runs."""

import contextlib
import ctypes


def return_freed_memory():
    """
    Make this process return freed blocks of a megabyte or more to the system at once.

    Reading videos frees one block of frames after another. glibc learns from that to keep such blocks, and the workers
    of a data loader grow to gigabytes that nothing uses.
    """
    mmap_threshold = -3
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(mmap_threshold, 2**20)
