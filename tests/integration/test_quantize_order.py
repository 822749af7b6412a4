"""Tests of checks before the work begins, of artifacts quantized twice, and of running quantized artifacts."""

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
description = "keep everything as it is"
from_quantized = true
[bounds]
relative_error = { "*" = 0.1 }
words_differ = 0.5
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
        (["--out", "there"], "there: "),
        (["--int8", "--out", "there"], "there: "),
        (["--int8", "--eval", "absent", "--out", "new"], "absent: "),
        (["--int8", "--eval", ".", "--no-eval", "--out", "new"], "--eval and --no-eval exclude one another"),
        (["--int8", "--calibration", "absent", "--out", "new"], "absent: no such folder of calibration audio"),
    ],
)
def test_wrong_options_are_refused_before_the_export(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_artifact(*_: Any) -> None:
        raise AssertionError("the export began")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("export.package.export_artifact", export_artifact)
    Path("there").mkdir()
    result = run(export.__main__.app, "qwen3-asr-tiny", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert [path.name for path in Path().iterdir()] == ["there"]


def test_graph_without_a_bound_is_refused(float_artifact: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "open.toml"
    recipe.write_text(TWICE.replace('{ "*" = 0.1 }', "{ encoder = 0.1 }"), encoding="utf-8")
    result = run(quantize.__main__.app, float_artifact, "--recipe", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "bounds.relative_error has no bound for decoder" in result.stderr


def test_hidden_folders_are_not_used_for_calibration(tmp_path: Path) -> None:
    for folder in (".Trash", "talks"):
        (tmp_path / folder).mkdir()
        shutil.copy(DATA / "en-1.wav", tmp_path / folder)
    audio = find_audio(Plan(load_recipe("int8"), calibration=tmp_path, graphs_only=True), "some-model")
    assert [str(clip.path.relative_to(tmp_path)) for clip in audio.calibration] == ["talks/en-1.wav"]
    assert (audio.calibration_name, audio.evaluation) == (tmp_path.name, [])


@pytest.mark.slow
def test_manifest_records_the_earlier_quantization(tmp_path: Path) -> None:
    recipe = tmp_path / "twice.toml"
    recipe.write_text(TWICE, encoding="utf-8")
    result = run(quantize.__main__.app, ARTIFACT, "--recipe", recipe, "--out", tmp_path / "out", "--eval", DATA)
    assert result.exit_code == 0, result.stderr
    quantization = open_artifact(tmp_path / "out").manifest.quantization
    assert quantization is not None
    assert quantization.before == open_artifact(ARTIFACT).manifest.quantization
    assert quantization.needs_vnni
    assert quantization.gate.identical == 1.0
    assert "twice" in run(runtime.__main__.app, "info", tmp_path / "out").stdout


def test_warning_for_processors_without_vnni(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("runtime.transcriber.lacks_vnni", lambda: True)
    Transcriber.from_artifact(ARTIFACT)
    assert "--reduce-range" in caplog.text
    caplog.clear()
    monkeypatch.setattr("runtime.transcriber.lacks_vnni", lambda: None)
    Transcriber.from_artifact(ARTIFACT)
    assert caplog.text == ""


def test_written_files_are_readable_by_all_users(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", json.dumps({}).encode())
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_engine_works_after_buffers_did_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    transcriber = Transcriber.from_artifact(ARTIFACT)
    before = transcriber.transcribe(DATA / "en-1.wav").text
    decoder: Any = transcriber._engine._decoder  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr("runtime.decoding.kv_rows.mmap.mmap", _raise_no_memory)
        with pytest.raises(MemoryError, match="bytes"):
            decoder.open_rows(3, 200)
        assert decoder.layout == (0, 0)
    assert transcriber.transcribe(DATA / "en-1.wav").text == before


def _raise_no_memory(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
