"""Resident memory of this process, on Linux, macOS and Windows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_resident_bytes() -> int:
    """Peak resident memory of this process so far, in bytes.

    On Linux it is the kernel's ``VmHWM``: ``ru_maxrss`` survives fork and exec, so a child would begin with its
    parent's peak there.
    """
    if (found := _from_status("VmHWM")) is not None:
        return found
    if sys.platform == "win32":
        return _windows_counters()[1]
    import resource

    # Kilobytes everywhere but on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Resident memory of this process now, in bytes."""
    if (found := _from_status("VmRSS")) is not None:
        return found
    if sys.platform == "win32":
        return _windows_counters()[0]
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return int(said.stdout) * 1024


def _from_status(key: str, status: Path = _STATUS) -> int | None:
    """A size in bytes from Linux's table of this process; None where there is none."""
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _windows_counters() -> tuple[int, int]:
    """Working set and its peak, from ``GetProcessMemoryInfo``."""
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        """PROCESS_MEMORY_COUNTERS of psapi.h."""

        _fields_ = (
            ("size", wintypes.DWORD),
            ("page_faults", wintypes.DWORD),
            ("peak_working_set", ctypes.c_size_t),
            ("working_set", ctypes.c_size_t),
            ("quotas", ctypes.c_size_t * 4),
            ("pagefile", ctypes.c_size_t),
            ("peak_pagefile", ctypes.c_size_t),
        )

    kernel = ctypes.CDLL("kernel32.dll")
    kernel.GetCurrentProcess.restype = wintypes.HANDLE
    query = kernel.K32GetProcessMemoryInfo
    query.argtypes = [wintypes.HANDLE, ctypes.POINTER(Counters), wintypes.DWORD]
    counters = Counters(size=ctypes.sizeof(Counters))
    if not query(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.size):
        raise OSError("GetProcessMemoryInfo failed")
    return int(counters.working_set), int(counters.peak_working_set)
