"""Providers and threads: what is asked happens or is an error."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from runtime import Transcriber
from runtime.errors import ArtifactInvalidError, OptionError, ProviderError
from runtime.providers import ProviderSpec, available_providers, parse_provider
from runtime.session import make_session
from tests.conftest import ARTIFACT


def test_parsing() -> None:
    assert parse_provider("cpu") == ProviderSpec("cpu", {})
    assert parse_provider("cpu:a=1,b=2").options == {"a": "1", "b": "2"}
    assert "cpu" in available_providers()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "unknown provider 'gpu'; available here: .*cpu"),
        ("", "unknown provider ''"),
        ("cpu:fast", "option 'fast' is not of the form key=value"),
        ("directml", "'directml' is not available.*available here: .*cpu"),
    ],
)
def test_what_cannot_be_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ProviderError, match=message):
        parse_provider(text)


def test_a_provider_that_does_not_become_active_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime falls back to the CPU without a word; we do not."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(ProviderError, match="made CPUExecution"),
    ):
        make_session(ARTIFACT / "encoder.onnx", parse_provider("cuda"))


def test_a_graph_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(ArtifactInvalidError, match=r"x.onnx: ONNX Runtime cannot load"):
        make_session(path, ProviderSpec())


def test_threads_must_be_positive() -> None:
    with pytest.raises(OptionError, match="threads must be at least 1, not 0"):
        Transcriber.from_artifact(ARTIFACT, threads=0)
