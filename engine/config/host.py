"""The host's memory allocator."""

import ctypes
import os
import platform

import torch

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1
OF_ITS_OWN = 1 << 20
"""Bytes from which a block is given back as soon as it is free."""

# torch asks the kernel for pages of 2 MB, for blocks that are as large (c10/core/impl/alloc_cpu.cpp). It reads this
# variable once, before its first tensor; a value that is there stays.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_pages() -> None:
    """Lets this process use the pages again that it frees, instead of asking the kernel for fresh ones.

    glibc gives every block above 128 KB back at once, and the next one costs a page fault, and a zeroed page, per 4 KB:
    a sixth of a step on two cores. Blocks of OF_ITS_OWN and more are given back all the same: kept, they leave holes
    that fit nothing, which took half as much memory again in a run of an adapter, and twice the memory in passes of
    8,192 tokens. In pages of 2 MB they cost no more time than blocks that are kept. Where the C library is another one,
    or a GPU does the work, nothing is changed.
    """
    if platform.libc_ver()[0] == "glibc" and not torch.cuda.is_available():
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, OF_ITS_OWN)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
