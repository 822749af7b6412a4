"""Rows that fit a memory budget, and the memory that Linux reports."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.batch_plan import plan_rows
from runtime.errors import OptionError
from runtime.host import memory

MEGA = 10**6


@given(
    max_rows=st.integers(1, 64),
    budget=st.integers(1, 4000),
    free=st.integers(0, 4000),
    work=st.integers(0, 500),
    positions=st.integers(1, 9000),
)
def test_rows_fit_or_are_refused(max_rows: int, budget: int, free: int, work: int, positions: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.engines.batch_plan.resident_bytes", lambda: 300 * MEGA)
        patch.setattr("runtime.engines.batch_plan.available_bytes", lambda: free * MEGA)
        sizes = {"positions": positions, "position_bytes": 20_000, "work_bytes": work * MEGA}
        minimum = 300 * MEGA + work * MEGA + positions * 20_000
        if budget * MEGA < minimum:
            with pytest.raises(OptionError, match="give at least"):
                plan_rows(max_rows, budget * MEGA, **sizes)
        else:
            plan = plan_rows(max_rows, budget * MEGA, **sizes)
            assert 1 <= plan.rows <= max_rows
            used = plan.fixed_bytes + plan.rows * plan.row_bytes
            assert used <= plan.memory == budget * MEGA
            assert plan.rows == max_rows or used + plan.row_bytes > plan.memory
        automatic = plan_rows(max_rows, None, **sizes)
        assert automatic.rows == max(1, min(max_rows, (free * MEGA // 2 - work * MEGA) // (positions * 20_000)))


def test_the_budget_in_the_error_message_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.engines.batch_plan.resident_bytes", lambda: 300 * MEGA)
    with pytest.raises(OptionError, match=r"200 MB .*351 MB"):
        plan_rows(4, 200 * MEGA, positions=1000, position_bytes=50_001, work_bytes=0)
    assert plan_rows(4, 351 * MEGA, positions=1000, position_bytes=50_001, work_bytes=0).rows == 1
    with pytest.raises(OptionError, match=r"max_batch .*1.*0"):
        plan_rows(0, None, positions=1, position_bytes=1, work_bytes=0)


@pytest.mark.skipif(sys.platform != "linux", reason="control groups and /proc are Linux's")
class TestLinux:
    def test_touched_pages_raise_the_resident_memory(self) -> None:
        before, available = memory.resident_bytes(), memory.available_bytes()
        # Pages of their own: an array could lie in memory that this process has had before.
        pages = mmap.mmap(-1, 200 * MEGA)
        np.frombuffer(pages, np.uint8)[::4096] = 1
        assert memory.resident_bytes() - before > 150 * MEGA
        assert memory.peak_resident_bytes() >= memory.resident_bytes() - 50 * MEGA
        assert 0 < available < 2**50

    def test_the_tightest_control_group_counts(self, tmp_path: Path) -> None:
        (tmp_path / "cgroup").write_text("0::/user/job\n")
        (tmp_path / "mountinfo").write_text(f"1 0 0:1 / {tmp_path} rw - cgroup2 cgroup2 rw\n")
        for group, limit, used in (("", "max", 1), ("user", "1000", 300), ("user/job", "5000", 100)):
            folder = tmp_path / group
            folder.mkdir(exist_ok=True)
            (folder / "memory.max").write_text(f"{limit}\n")
            (folder / "memory.current").write_text(f"{used}\n")
        assert min(memory._cgroup_room(tmp_path)) == 700

    def test_control_groups_of_version_1(self, tmp_path: Path) -> None:
        (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/a\n4:memory:/docker/x\n")
        (tmp_path / "mountinfo").write_text(f"1 0 0:1 / {tmp_path} rw - cgroup cgroup rw,memory\n")
        folder = tmp_path / "docker" / "x"
        folder.mkdir(parents=True)
        (folder / "memory.limit_in_bytes").write_text("9000")
        (folder / "memory.usage_in_bytes").write_text("2000")
        assert memory._cgroup_room(tmp_path) == [7000]

    def test_no_control_groups(self, tmp_path: Path) -> None:
        assert memory._cgroup_room(tmp_path) == []
