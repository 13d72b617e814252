"""The host's memory allocator."""

import ctypes
import os
import platform
from pathlib import Path

import torch

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
LARGEST = 2**31 - 1
OF_ITS_OWN = 8 << 20
"""Bytes from which a block is given back as soon as it is free."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# torch asks the kernel for pages of 2 MB, for blocks that are as large (c10/core/impl/alloc_cpu.cpp). It reads this
# variable once, before its first tensor; a value that is there stays.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_kept: list[tuple[ctypes.CDLL, int]] = []
"""The C library, and the bytes that were held before there was any tensor."""


def keep_pages() -> None:
    """Lets this process use the pages again that it frees, instead of asking the kernel for fresh ones.

    glibc gives every block above 128 KB back at once, and the next one costs page faults and zeroed pages: up to a
    third of a step on two cores. Blocks of OF_ITS_OWN and more are given back all the same: kept, they leave holes that
    fit nothing, which took twice the memory of passes of 8,192 tokens. All threads share one arena, so that what the
    threads of an operation free is there for everybody. Where the C library is another one, or a GPU does the work,
    nothing is changed.
    """
    if platform.libc_ver()[0] == "glibc" and not torch.cuda.is_available():
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, OF_ITS_OWN)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
        libc.mallopt(M_ARENA_MAX, 1)
        _kept[:] = [(libc, _held())]


def give_back(limit: int) -> None:
    """Gives all free pages back, between two passes, where pages are kept and the run holds more bytes than `limit`.

    Blocks of another pass have other sizes, and leave holes. Each page that is given back costs a fault when it is
    wanted again, which took a third of a step of an adapter where all were given back.
    """
    for libc, before in _kept:
        if _held() - before > limit:
            libc.malloc_trim(0)


def _held() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
