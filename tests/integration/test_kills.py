"""Ten kills at random moments of each command leave nothing incomplete and lose nothing; the next run goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import gigaam_checkpoint
from tools.kill_runs import WORKS, BatchLines, KillError

_REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_a_killed_command_leaves_nothing_incomplete(name: str, tmp_path: Path) -> None:
    # Random weights: smaller than those of the small checkpoint, and so faster.
    checkpoint = gigaam_checkpoint.write("ctc", tmp_path / "checkpoint", **gigaam_checkpoint.TINY)
    # A process of its own, since it forks: this one has threads of torch, whose locks a fork would wait for.
    command = [sys.executable, "-m", "tools.kill_runs", "--runs", "10", "--command", name]
    command += ["--checkpoint", str(checkpoint)]
    result = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, timeout=540, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "10 kills" in result.stdout


def test_the_checks_find_half_a_line_and_a_lost_one(tmp_path: Path) -> None:
    work = BatchLines(tmp_path)
    assert work.finished() == {}
    work.out.write_text('{"id": "a", "text": "one"}\n{"id": "b"', encoding="utf-8")
    with pytest.raises(KillError, match="a part of a line"):
        work.finished()
    work.out.write_text('{"id": "a", "text": "one"}\n', encoding="utf-8")
    assert work.finished() == {"a": "one"}
