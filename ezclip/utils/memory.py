"""What keeps the memory of long runs flat."""

import contextlib
import ctypes


def return_freed_memory():
    """
    Have this process give blocks of a megabyte or more back to the system as soon as they are free.

    Reading videos frees one block of frames after another. glibc learns from that to keep such blocks, and those of a
    data loader's worker grow to gigabytes that nothing uses.
    """
    mmap_threshold = -3
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(mmap_threshold, 2**20)
