"""How many threads to use, and how they wait: the cores that this process may use, and pools that do not spin on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnxruntime as ort

from runtime.host.cgroups import PROC, group_folders, read_lines

# How long a thread of a running session looks for work before it sleeps. Gaps between two nodes are far shorter; a
# longer wait means that another session, or another process, could use the core.
_SPIN_MICROSECONDS = 1000


def usable_cores(proc: Path = PROC) -> int:
    """Cores this process may use: its affinity mask, cut to the smallest CPU quota of its cgroups and all above them.

    A quota is rounded to the nearest whole core: a thread for a small part of one would spend the quota of the others
    waiting.

    Args:
        proc: what the kernel says of this process (``cgroup`` and ``mountinfo`` are read).
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    quota = min(_quotas(proc), default=float(cores))
    return max(1, min(cores, int(quota + 0.5)))


def apply_threads(options: ort.SessionOptions, threads: int | None = None) -> None:
    """Give a session ``threads`` threads, :func:`usable_cores` when None, that sleep as soon as no run is in progress.

    Every session keeps a pool of its own. A pool for the whole process, which ONNX Runtime has too, can be sized only
    once and cannot be told to stop spinning between runs.
    """
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))


def _quotas(proc: Path) -> Iterator[float]:
    """CPU quotas in cores; none where nothing limits this process, or there is no control group."""
    for version, folder in group_folders("cpu", proc):
        quota = _quota_v2(folder) if version == 2 else _quota_v1(folder)
        if quota is not None:
            yield quota


def _quota_v2(folder: Path) -> float | None:
    """``cpu.max`` is "max period" or "quota period", in microseconds."""
    fields = " ".join(read_lines(folder / "cpu.max")).split()
    return _ratio(*fields) if len(fields) == 2 else None


def _quota_v1(folder: Path) -> float | None:
    """A negative ``cpu.cfs_quota_us`` is none."""
    quota, period = (" ".join(read_lines(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    return _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)
