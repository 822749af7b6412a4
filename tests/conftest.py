"""Shared fixtures: the tracked model, the checkpoint it came from, the sample recordings."""

from __future__ import annotations

import json
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

settings.register_profile("no deadline", deadline=None)  # no test is about time
settings.load_profile("no deadline")

# A shell ignores interrupts for what it runs in the background, and whatever the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
ARTIFACT = REPOSITORY / "artifacts" / "qwen3-asr-tiny-int8"
CHECKPOINT = REPOSITORY / "artifacts" / "checkpoints" / "qwen3-asr-tiny"
DATA = REPOSITORY / "tests" / "data"


def pytest_unconfigure(config: pytest.Config) -> None:
    """The names of what failed, last of all: CI does not cut messages, and one of many lines would hide the others."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        for kind in ("failed", "error"):
            for report in reporter.stats.get(kind, []):
                reporter.write_line(f"{kind}: {report.nodeid}")


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's caches, and none reaches the network."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("ASR_DEPLOY_PREPARED", raising=False)


@pytest.fixture(scope="session")
def transcriber() -> Transcriber:
    """The tracked small model."""
    return Transcriber.from_artifact(ARTIFACT)


@pytest.fixture(scope="session")
def float_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint exported in float32, as ``python -m export qwen3-asr-tiny`` makes it."""
    from export.__main__ import app  # only the tests that use this need torch

    out = tmp_path_factory.mktemp("export") / "qwen3-asr-tiny"
    result = CliRunner().invoke(app, ["qwen3-asr-tiny", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    return out


@pytest.fixture(scope="session")
def float_transcriber(float_artifact: Path) -> Transcriber:
    """The same, opened."""
    return Transcriber.from_artifact(float_artifact)


@pytest.fixture(scope="session")
def samples() -> list[dict[str, Any]]:
    """The sample recordings' index: file, language, text, context, words."""
    index: list[dict[str, Any]] = json.loads((DATA / "index.json").read_text(encoding="utf-8"))
    return index


@pytest.fixture(scope="session")
def speech(samples: list[dict[str, Any]]) -> npt.NDArray[np.float32]:
    """All recordings of the samples one after the other, 16 kHz."""
    return np.concatenate([soundfile.read(DATA / sample["file"], dtype="float32")[0] for sample in samples])


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator, fresh for each test."""
    return np.random.default_rng(1234)
