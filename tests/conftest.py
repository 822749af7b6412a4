"""Shared fixtures: the small model of the tests, its source checkpoint and the sample recordings."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import settings
from typer.testing import CliRunner

from runtime import Transcriber
from runtime.model import bundled

if "PYTEST_XDIST_WORKER" in os.environ:  # with tests side by side, threads of torch would only slow one another down
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("no deadline", deadline=None)  # no test measures time
settings.load_profile("no deadline")

# A shell ignores SIGINT in background jobs, and the processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
#: The small model, with which most tests run: it transcribes a sample in a fraction of the bundled model's time.
ARTIFACT = REPOSITORY / "artifacts" / "qwen3-asr-tiny-int8"
CHECKPOINT = REPOSITORY / "artifacts" / "checkpoints" / "qwen3-asr-tiny"
DATA = REPOSITORY / "tests" / "data"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print the names of failed tests at the very end: CI shows whole messages, and a long one hides the others."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        for kind in ("failed", "error"):
            for report in reporter.stats.get(kind, []):
                reporter.write_line(f"{kind}: {report.nodeid}")


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep each test away from the user's caches."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("ASR_DEPLOY_PREPARED", raising=False)


@pytest.fixture
def small_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the small model the default of this process, for tests of commands that name no model."""
    monkeypatch.setattr(bundled, "BUNDLED_MODEL", ARTIFACT.name)


@pytest.fixture(scope="session")
def transcriber() -> Transcriber:
    """Return the small model, opened."""
    return Transcriber.from_artifact(ARTIFACT)


@pytest.fixture(scope="session")
def float_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the tiny checkpoint in float32 with ``python -m export qwen3-asr-tiny``; return the folder."""
    from export.__main__ import app  # only the tests that use this need torch

    out = tmp_path_factory.mktemp("export") / "qwen3-asr-tiny"
    result = CliRunner().invoke(app, ["qwen3-asr-tiny", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    return out


@pytest.fixture(scope="session")
def float_transcriber(float_artifact: Path) -> Transcriber:
    """Return the float32 artifact, opened."""
    return Transcriber.from_artifact(float_artifact)


@pytest.fixture(scope="session")
def samples() -> list[dict[str, Any]]:
    """Return the index of the sample recordings: file, language, text, context, words."""
    index: list[dict[str, Any]] = json.loads((DATA / "index.json").read_text(encoding="utf-8"))
    return index


@pytest.fixture(scope="session")
def speech(samples: list[dict[str, Any]]) -> npt.NDArray[np.float32]:
    """Return all sample recordings joined, float32 [samples] at 16 kHz."""
    return np.concatenate([soundfile.read(DATA / sample["file"], dtype="float32")[0] for sample in samples])


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a new seeded generator for each test."""
    return np.random.default_rng(1234)
