"""Memory of long runs."""

import contextlib
import ctypes


# Freed blocks of this size or more go back to the system; glibc would raise the limit as it learns.
MMAP_THRESHOLD = 2**20  # bytes


def return_freed_memory():
    """
    Make this process return freed blocks of a megabyte or more to the system at once.

    Reading videos frees one block of frames after another. glibc learns from that to keep such blocks, and the workers
    of a data loader grow to gigabytes that nothing uses.
    """
    option = -3  # M_MMAP_THRESHOLD
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(option, MMAP_THRESHOLD)
