"""Count the cores that this process may use, and give sessions threads that sleep between runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnxruntime as ort

from runtime.host.cgroups import PROC, group_folders, read_lines

# How long a thread of a running session spins for work before it sleeps. Gaps between two nodes are much shorter; after
# a longer wait, another session or process could use the core.
_SPIN_MICROSECONDS = 1000


def usable_cores(proc: Path = PROC) -> int:
    """Return the number of cores that this process may use, at least 1.

    This is the size of the affinity mask, limited by the smallest CPU quota of the process's cgroups and their parents.
    A quota is rounded to the nearest whole core: a thread for a small part of a core would spend the quota of the
    others waiting.

    Args:
        proc: the kernel's folder about this process; ``cgroup`` and ``mountinfo`` are read from it.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    quota = min(_quotas(proc), default=float(cores))
    return max(1, min(cores, int(quota + 0.5)))


def apply_threads(options: ort.SessionOptions, threads: int | None = None) -> None:
    """Give a session ``threads`` threads (:func:`usable_cores` if None) that sleep when no run is in progress.

    Every session has its own pool. ONNX Runtime's pool for the whole process can be sized only once, and its threads
    spin between runs.
    """
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))


def _quotas(proc: Path) -> Iterator[float]:
    """Yield the CPU quotas of this process's cgroups in cores; nothing where there is no limit or no cgroup."""
    for version, folder in group_folders("cpu", proc):
        quota = _quota_v2(folder) if version == 2 else _quota_v1(folder)
        if quota is not None:
            yield quota


def _quota_v2(folder: Path) -> float | None:
    """Read ``cpu.max``: "max period" or "quota period", in microseconds."""
    fields = " ".join(read_lines(folder / "cpu.max")).split()
    return _ratio(*fields) if len(fields) == 2 else None


def _quota_v1(folder: Path) -> float | None:
    """Read ``cpu.cfs_quota_us``; a negative value means no limit."""
    quota, period = (" ".join(read_lines(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    return _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    """Return ``quota / period``, or None unless both are positive integers."""
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)
