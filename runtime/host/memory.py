"""Resident memory of this process, on Linux, macOS and Windows."""

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


def available_bytes() -> int:
    """Memory that this process can still take: what the system has left, and no more than its control group allows."""
    free = _system_available()
    return max(0, min([free, *_cgroup_room()]))


def _system_available() -> int:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    except OSError:  # not Linux
        pass
    if sys.platform == "win32":
        return _windows_available()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS does not say what is left of it


def _cgroup_room(proc: Path = PROC) -> list[int]:
    """What each control group above this process has left; empty where there are none, or none has a limit."""
    names = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    room = []
    for version, folder in group_folders("memory", proc):
        limit, used = (" ".join(read_lines(folder / name)) for name in names[version])
        if limit.isdecimal() and used.isdecimal():  # and not "max"
            room.append(int(limit) - int(used))
    return room


def _windows_available() -> int:
    """Physical memory that is free, from ``GlobalMemoryStatusEx``."""
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
