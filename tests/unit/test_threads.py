"""Tests of the number of usable cores, and of sessions whose threads sleep between runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from runtime import Transcriber
from runtime.ort import threads
from runtime.ort.threads import usable_cores
from tests.conftest import ARTIFACT, REPOSITORY

V2 = "30 24 0:26 {root} {point} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 25 0:27 {root} {point} rw,nosuid shared:5 - cgroup cgroup rw,cpu,cpuacct\n"
OTHER = "22 28 0:21 / /proc rw,nosuid shared:14 - proc proc rw\n33 25 0:29 / {point}/x rw - cgroup cgroup rw,memory\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Process that may run on 64 cores, without cgroups; tests write them to ``cgroup fs`` (with a blank)."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    (tmp_path / "cgroup fs").mkdir()
    return tmp_path


def v2(host: Path, own: str, quotas: dict[str, str], *, root: str = "/") -> int:
    point = host / "cgroup fs"
    (host / "cgroup").write_text(f"0::{own}\n")
    escaped = str(point).replace(" ", "\\040")
    (host / "mountinfo").write_text(OTHER.format(point=escaped) + V2.format(root=root, point=escaped))
    for folder, quota in quotas.items():
        (point / folder).mkdir(parents=True, exist_ok=True)
        (point / folder / "cpu.max").write_text(quota + "\n")
    return usable_cores(host)


def v1(host: Path, own: str, quotas: dict[str, tuple[int, int]], *, root: str = "/") -> int:
    point = host / "cgroup fs"
    (host / "cgroup").write_text(f"12:memory:/else\n4:cpu,cpuacct:{own}\n1:name=systemd:/else\n0::/\n")
    escaped = str(point).replace(" ", "\\040")
    (host / "mountinfo").write_text(OTHER.format(point=escaped) + V1.format(root=root, point=escaped))
    for folder, (quota, period) in quotas.items():
        (point / folder).mkdir(parents=True, exist_ok=True)
        (point / folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (point / folder / "cpu.cfs_period_us").write_text(f"{period}\n")
    return usable_cores(host)


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({}, 64),
        ({"a/b": "max 100000"}, 64),
        ({"a/b": "300000 100000"}, 3),
        ({"a/b": "max 100000", "a": "400000 100000"}, 4),  # the limit is the parent's
        ({"a/b": "800000 100000", "a": "400000 100000", "": "600000 100000"}, 4),
        ({"a/b": "200000 100000", "a": "400000 100000"}, 2),
        ({"a/b": "max 100000", "a/b/c": "100000 100000", "other": "100000 100000"}, 64),  # not this process's
        ({"a/b": "10000 100000"}, 1),
        ({"a/b": "140000 100000"}, 1),
        ({"a/b": "150000 100000"}, 2),
        ({"a/b": "9900000 100000"}, 64),  # more than the affinity mask
        ({"a/b": "nonsense"}, 64),
        ({"a/b": ""}, 64),
        ({"a/b": "0 100000"}, 64),
        ({"a/b": "100000 0"}, 64),
    ],
)
def test_smallest_quota_of_nested_groups_is_used(host: Path, quotas: dict[str, str], expected: int) -> None:
    assert v2(host, "/a/b", quotas) == expected


def test_quota_of_a_container(host: Path) -> None:
    assert v2(host, "/", {"": "200000 100000"}) == 2  # in a cgroup namespace its own group is the root
    assert v2(host, "/host/box/in", {"in": "max 1", "": "500000 100000"}, root="/host/box") == 5
    assert v2(host, "/host/elsewhere", {"": "300000 100000"}, root="/host/box") == 3
    assert v2(host, "/../beside", {"": "300000 100000"}) == 3  # outside the namespace


def test_cgroups_version_1(host: Path) -> None:
    assert v1(host, "/docker/box", {"docker/box": (-1, 100_000)}) == 64
    assert v1(host, "/docker/box", {"docker/box": (250_000, 50_000)}) == 5
    assert v1(host, "/docker/box", {"docker": (60_000, 20_000)}) == 3
    assert v1(host, "/docker/box", {"": (400_000, 100_000), "docker/box": (-1, 1)}, root="/docker/box") == 4


def test_no_cgroups(host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores(tmp_path / "absent") == 64
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path / "absent") == 1


def test_this_process_has_a_core() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux has affinity masks")
def test_affinity_mask_limits_cores() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from runtime.ort.threads import usable_cores; print(usable_cores())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "1"


def test_no_thread_spins_after_a_run(speech: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured in CPU seconds: with ONNX Runtime's defaults it is 0.05 to 0.1."""
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    transcriber = Transcriber.from_artifact(ARTIFACT)
    transcriber.transcribe(speech[:48_000], sample_rate=16_000)
    began = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - began < 0.02
