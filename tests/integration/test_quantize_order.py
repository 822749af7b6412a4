"""What is found wrong before the work begins, and artifacts quantized twice."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import export.__main__
import quantize.__main__
import runtime.__main__
from quantize.package import Plan, find_audio
from quantize.recipe import load_recipe
from runtime import Transcriber, open_artifact
from runtime.host.files import write_atomically
from tests.conftest import ARTIFACT, DATA

TWICE = """
description = "the encoder's products that int8 left alone"
from_quantized = true
[bounds]
relative_error = { "*" = 0.1 }
identical = 0.5
error_rate = 0.5
[[rules]]
graph = "*"
method = "keep"
optional = true
"""


def run(app: Any, *arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "there"], "there: exists already"),
        (["--int8", "--out", "there"], "there: exists already"),
        (["--int8", "--eval", "absent", "--out", "new"], "absent: no such folder"),
        (["--int8", "--calibration", "absent", "--out", "new"], "absent: no such folder of calibration audio"),
    ],
)
def test_nothing_is_exported_for_options_that_are_wrong(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("export.package.export_artifact", work)
    Path("there").mkdir()
    result = run(export.__main__.app, "qwen3-asr-tiny", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert [path.name for path in Path().iterdir()] == ["there"]


def test_a_graph_without_a_bound_is_refused(float_artifact: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "open.toml"
    recipe.write_text(TWICE.replace('{ "*" = 0.1 }', "{ encoder = 0.1 }"), encoding="utf-8")
    result = run(quantize.__main__.app, float_artifact, "--recipe", recipe, "--out", tmp_path / "made")
    assert result.exit_code == 2
    assert "bounds.relative_error has none for decoder, nor for *" in result.stderr


def test_hidden_folders_are_not_calibrated_with(tmp_path: Path) -> None:
    for folder in (".Trash", "talks"):
        (tmp_path / folder).mkdir()
        shutil.copy(DATA / "en-1.wav", tmp_path / folder)
    clips, utterances = find_audio(Plan(load_recipe("int8"), calibration=tmp_path), "some-model")
    assert [str(clip.relative_to(tmp_path)) for clip in clips] == ["talks/en-1.wav"]
    assert utterances == []


@pytest.mark.slow
def test_how_the_parent_was_made_is_not_forgotten(tmp_path: Path) -> None:
    recipe = tmp_path / "twice.toml"
    recipe.write_text(TWICE, encoding="utf-8")
    result = run(quantize.__main__.app, ARTIFACT, "--recipe", recipe, "--out", tmp_path / "made", "--eval", DATA)
    assert result.exit_code == 0, result.stderr
    found = open_artifact(tmp_path / "made").manifest.quantization
    assert found is not None
    assert found.before == open_artifact(ARTIFACT).manifest.quantization
    assert found.needs_vnni
    assert found.gate.identical == 1.0
    assert "twice" in run(runtime.__main__.app, "info", tmp_path / "made").stdout


def test_a_processor_without_vnni_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runtime.transcriber.lacks_vnni", lambda: True)
    Transcriber.from_artifact(ARTIFACT)
    assert "quantize with --reduce-range" in caplog.text
    caplog.clear()
    monkeypatch.setattr("runtime.transcriber.lacks_vnni", lambda: None)
    Transcriber.from_artifact(ARTIFACT)
    assert caplog.text == ""


def test_written_files_are_for_everybody_to_read(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", json.dumps({}).encode())
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_an_engine_outlives_buffers_that_did_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    transcriber = Transcriber.from_artifact(ARTIFACT)
    before = transcriber.transcribe(DATA / "en-1.wav").text
    decoder: Any = transcriber._engine._decoder  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr("runtime.decoding.kv_rows.mmap.mmap", _no_memory)
        with pytest.raises(MemoryError, match="bytes for keys and values"):
            decoder.open_rows(3, 200)
        assert decoder.layout == (0, 0)
    assert transcriber.transcribe(DATA / "en-1.wav").text == before


def _no_memory(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
