"""Ten kills at random moments of each command leave nothing incomplete and lose nothing; the next run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import gigaam_checkpoint
from tools.kill_runs import WORKS, BatchLines, Export, KillError, kill_runs

_RUNS, _SEED = 10, 0


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_a_killed_command_leaves_nothing_incomplete(name: str, tmp_path: Path) -> None:
    work = WORKS[name](tmp_path)
    if isinstance(work, Export):  # random weights: smaller than the small checkpoint, and so faster
        folder = gigaam_checkpoint.write("ctc", tmp_path / "checkpoint", **gigaam_checkpoint.TINY)
        work.checkpoint = ("gigaam-v3-ctc", folder)
    assert "10 kills" in kill_runs(work, _RUNS, _SEED)


def test_the_checks_find_half_a_line_and_a_lost_one(tmp_path: Path) -> None:
    work = BatchLines(tmp_path)
    assert work.finished() == {}
    work.out.write_text('{"id": "a", "text": "one"}\n{"id": "b"', encoding="utf-8")
    with pytest.raises(KillError, match="a part of a line"):
        work.finished()
    work.out.write_text('{"id": "a", "text": "one"}\n', encoding="utf-8")
    assert work.finished() == {"a": "one"}
