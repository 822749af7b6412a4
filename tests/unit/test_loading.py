"""Load the parts of a model in parallel; the first part's error is raised when all have ended."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from runtime.engines.loading import load_together
from tests.conftest import REPOSITORY


def test_parts_load_in_parallel_and_return_in_order() -> None:
    barrier = threading.Barrier(3, timeout=30)  # raises an error unless all three are running

    def load(value: int) -> int:
        barrier.wait()
        return value

    assert load_together(lambda: load(1), lambda: load(2), lambda: load(3)) == (1, 2, 3)


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


def test_transcribing_imports_no_unneeded_modules() -> None:
    """Imports take a fifth of a cold start."""
    code = "import runtime.__main__, sys; print(*sorted(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(process.stdout.split())
    assert "runtime.transcriber" in loaded
    assert not loaded & {"runtime.evaluation", "jiwer", "rich", "av", "tokenizers", "importlib.metadata"}
