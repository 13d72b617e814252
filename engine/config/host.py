"""The host's memory allocator."""

import ctypes
import platform

import torch

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1
OF_ITS_OWN = 4 << 20
"""Bytes from which a block is given back as soon as it is free."""


def keep_pages() -> None:
    """Lets this process use the pages again that it frees, instead of asking the kernel for fresh ones.

    glibc gives every block above 128 KB back at once, and the next one costs a page fault, and a zeroed page, per 4 KB:
    a sixth of a step on two cores. Blocks of OF_ITS_OWN and more are given back all the same: kept, they leave holes
    that fit nothing, which took twice the memory of passes of 8,192 tokens. Where the C library is another one, or a
    GPU does the work, nothing is changed.
    """
    if platform.libc_ver()[0] == "glibc" and not torch.cuda.is_available():
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, OF_ITS_OWN)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
