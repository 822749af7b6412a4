"""Reuse of freed memory between training steps."""

from __future__ import annotations

import ctypes
import platform

# Options of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Make glibc's malloc return no memory to the system; does nothing with other C libraries.

    Each step of a small model on a CPU allocates and frees the same hundreds of megabytes, in tensors that malloc would
    map and unmap one by one. Measured with the small GigaAM: page faults took half the time of a step.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 1 << 28)):
        mallopt(option, value)
