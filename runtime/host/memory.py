"""Measure resident and available memory of this process on Linux, macOS and Windows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from runtime.host.cgroups import PROC, group_folders, read_lines

_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process so far, in bytes.

    Linux: the kernel's ``VmHWM``. ``ru_maxrss`` survives fork and exec, so that a child process would start with its
    parent's peak.
    """
    if (size := _from_status("VmHWM")) is not None:
        return size
    if sys.platform == "win32":
        return _windows_counters()[1]
    import resource

    # In bytes on macOS, in kilobytes elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Return the resident memory of this process now, in bytes."""
    if (size := _from_status("VmRSS")) is not None:
        return size
    if sys.platform == "win32":
        return _windows_counters()[0]
    command = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024


def release_free_memory() -> bool:
    """Return freed memory of the C heap to the system; return False where that is not possible.

    Loading a graph takes twice its size for a moment, and glibc keeps what is freed below a block in use.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
    if trim is None:
        return False
    trim(ctypes.c_size_t(0))
    return True


def _from_status(key: str, status: Path = _STATUS) -> int | None:
    """Return an entry of ``/proc/self/status`` in bytes, or None if there is no such file or entry."""
    return _kilobytes(status, key)


def _kilobytes(path: Path, key: str) -> int | None:
    """Return the entry ``key: <number> kB`` of a file in bytes, or None if there is no such file or entry."""
    try:
        match = re.search(rf"^{key}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def _windows_counters() -> tuple[int, int]:
    """Return the working set and its peak in bytes, from ``GetProcessMemoryInfo``."""
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


def available_bytes() -> int:
    """Return how many more bytes this process can allocate, limited by the system and by its control groups."""
    free = _system_available()
    return max(0, min([free, *_cgroup_room()]))


def _system_available() -> int:
    """Return the system's available memory in bytes; on macOS, which does not report it, the installed memory."""
    if (size := _kilobytes(_MEMINFO, "MemAvailable")) is not None:
        return size
    if sys.platform == "win32":
        return _windows_available()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_room(proc: Path = PROC) -> list[int]:
    """Return the bytes left in each control group of this process that has a limit."""
    names = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    room = []
    for version, folder in group_folders("memory", proc):
        limit, used = (" ".join(read_lines(folder / name)) for name in names[version])
        if limit.isdecimal() and used.isdecimal():  # "max" means no limit
            room.append(int(limit) - int(used))
    return room


def _windows_available() -> int:
    """Return the free physical memory in bytes, from ``GlobalMemoryStatusEx``."""
    import ctypes
    from ctypes import wintypes

    class Status(ctypes.Structure):
        """MEMORYSTATUSEX of sysinfoapi.h."""

        _fields_ = (
            ("size", wintypes.DWORD),
            ("load", wintypes.DWORD),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "a", "b", "c", "d", "e")),
        )

    status = Status(size=ctypes.sizeof(Status))
    if not ctypes.CDLL("kernel32.dll").GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("GlobalMemoryStatusEx failed")
    return int(status.free)
