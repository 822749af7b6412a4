"""Memory that a training has freed is kept for its next step."""

from __future__ import annotations

import ctypes
import platform

# Of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Have glibc's malloc give nothing back to the system; elsewhere nothing happens.

    Every step of a small model on a CPU takes and frees the same hundreds of megabytes, in tensors each of which malloc
    would map and unmap by itself. Measured with the small GigaAM: half the time of a step went into the page faults.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 1 << 28)):
        mallopt(option, value)
