"""Parts of a model load at the same time; an error is the first part's and comes when all are done."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from runtime.engines.loading import load_together
from tests.conftest import REPOSITORY


def test_they_run_together_and_return_in_order() -> None:
    meeting = threading.Barrier(3, timeout=30)  # breaks unless all three are running

    def meet(value: int) -> int:
        meeting.wait()
        return value

    assert load_together(lambda: meet(1), lambda: meet(2), lambda: meet(3)) == (1, 2, 3)


def test_the_first_error_is_raised_when_all_have_ended() -> None:
    failed, ended = threading.Event(), []

    def fail(error: Exception) -> None:
        failed.set()
        raise error

    def slow() -> None:
        failed.wait(30)
        ended.append(True)

    with pytest.raises(ValueError, match="one"):
        load_together(slow, lambda: fail(ValueError("one")), lambda: fail(TypeError("two")))
    assert ended == [True]


def test_transcribing_does_not_import_what_it_does_not_need() -> None:
    """Imports are a fifth of a cold start."""
    code = "import runtime.__main__, sys; print(*sorted(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(said.stdout.split())
    assert "runtime.transcriber" in loaded
    assert not loaded & {"runtime.evaluation", "jiwer", "rich", "av", "tokenizers", "importlib.metadata"}
