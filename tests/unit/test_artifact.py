"""Tests of opening artifacts: checks of the manifest and of the files, and the error for each defect."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.errors import ArtifactInvalidError, ArtifactNotFoundError
from runtime.host import files
from runtime.host.files import write_atomically
from runtime.model import artifact as artifact_module
from runtime.model.artifact import open_artifact
from runtime.model.manifest import MANIFEST, SCHEMA_VERSION, Parity
from runtime.transcriber import Transcriber
from tests.conftest import ARTIFACT


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ARTIFACT, tmp_path / "model"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def test_system_errors_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArtifactInvalidError, match="cannot be read"):
        open_artifact(tmp_path / ("x" * 300))


def test_user_without_a_home_can_open_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(artifact_module.VerifiedFiles, "MIN_BYTES", 0)
    assert open_artifact(ARTIFACT).manifest.name == "qwen3-asr-tiny-int8"


@pytest.mark.parametrize(
    ("data", "message"), [("w.data", "'w.data' is used but has no"), ("../w", "outside the model")]
)
def test_external_data_is_checked_like_other_files(copy: Path, data: str, message: str) -> None:
    edit(copy, lambda manifest: manifest["graphs"]["decoder"].update(data=data))
    with pytest.raises(ArtifactInvalidError, match=message):
        open_artifact(copy)


def replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def test_tracked_model_opens() -> None:
    opened = open_artifact(ARTIFACT)
    assert opened.manifest.schema_version == SCHEMA_VERSION
    assert set(opened.manifest.graphs) == {"encoder", "decoder"}
    assert opened.graph_path("encoder").is_file()
    assert opened.size == sum(path.stat().st_size for path in ARTIFACT.iterdir() if path.name != MANIFEST)
    with pytest.raises(ArtifactInvalidError, match="no graph with the role 'joint'"):
        opened.graph_path("joint")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: shutil.rmtree(p), ArtifactNotFoundError, "no such model folder"),
        (replace_by_a_file, ArtifactNotFoundError, "is a file"),
        (lambda p: (p / MANIFEST).unlink(), ArtifactNotFoundError, "holds no manifest.json"),
        (
            lambda p: (p / "encoder.onnx").unlink(),
            ArtifactNotFoundError,
            "encoder.onnx: file of the model is missing",
        ),
        (lambda p: (p / MANIFEST).write_text("{"), ArtifactInvalidError, "manifest.json: Input data was truncated"),
        (lambda p: (p / MANIFEST).write_bytes(b"\xff\xfe{}"), ArtifactInvalidError, "manifest.json"),
        (lambda p: (p / MANIFEST).write_text("[]"), ArtifactInvalidError, "Expected `object`"),
        (lambda p: edit(p, lambda m: m.update(schema_version=99)), ArtifactInvalidError, "version 99 is newer than 1"),
        (lambda p: edit(p, lambda m: m.update(surprise=1)), ArtifactInvalidError, "unknown field `surprise`"),
        (lambda p: edit(p, lambda m: m.pop("family")), ArtifactInvalidError, "missing required field `family`"),
        (lambda p: edit(p, lambda m: m.update(tokenizer=3)), ArtifactInvalidError, r"at `\$.tokenizer`"),
        (lambda p: edit(p, lambda m: m.update(tokenizer="../x")), ArtifactInvalidError, "outside the model folder"),
        (
            lambda p: edit(p, lambda m: m.update(tokenizer="/etc/passwd")),
            ArtifactInvalidError,
            "outside the model folder",
        ),
        (lambda p: edit(p, lambda m: m["files"].pop("tokenizer.json")), ArtifactInvalidError, "no entry under `files`"),
    ],
)
def test_broken_artifacts(copy: Path, make: Callable[[Path], object], error: type[Exception], message: str) -> None:
    make(copy)
    with pytest.raises(error, match=message) as caught:
        open_artifact(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_altered_graph_is_refused(copy: Path) -> None:
    path = copy / "decoder.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactInvalidError, match=r"decoder.onnx: sha256 is .* was altered"):
        open_artifact(copy)
    assert open_artifact(copy, verify=False)  # sizes still agree
    path.write_bytes(data[:-1])
    with pytest.raises(ArtifactInvalidError, match=r"has \d+ bytes, expected \d+"):
        open_artifact(copy, verify=False)


def test_altered_file_is_refused_although_it_was_verified_before(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of verified files must not hide a change that keeps size and modification time."""
    monkeypatch.setattr(artifact_module.VerifiedFiles, "MIN_BYTES", 0)
    hashed: list[Path] = []
    original = files.sha256_file

    def recording(path: Path) -> str:
        hashed.append(path)
        return original(path)

    monkeypatch.setattr(artifact_module, "sha256_file", recording)
    open_artifact(copy)
    first = len(hashed)
    assert first == len(open_artifact(copy).manifest.files)  # the second opening hashed nothing
    assert len(hashed) == first
    path = copy / "encoder.onnx"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtifactInvalidError, match="was altered"):
        open_artifact(copy)


def test_read_only_cache_is_not_an_error(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_module.VerifiedFiles, "MIN_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert open_artifact(copy).manifest.name == "qwen3-asr-tiny-int8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(family="sphinx"), "family 'sphinx' is unknown to this runtime"),
        (lambda m: m["parameters"].update(hidden_size=128), "parameters.hidden_size is 128"),
        (lambda m: m["parameters"].update(audio_pad_id=1), "parameters.audio_pad_id is 1"),
        (lambda m: m["parameters"].update(layers=28), "parameters.layers is 28, but graph or tokenizer have 4"),
        (lambda m: m["parameters"].pop("prompt"), "missing required field `prompt`"),
        (lambda m: m["front_end"].update(kind="nemo"), "manifest.json: Invalid enum value 'nemo'"),
    ],
)
def test_manifest_that_contradicts_its_graphs_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(copy, change)
    with pytest.raises(ArtifactInvalidError, match=message):
        Transcriber.from_artifact(copy)


def test_atomic_write_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_parity_without_relative_differences_is_read() -> None:
    """Artifacts of versions that compared absolute differences."""
    stored = b'{"max_abs_difference": 2e-5, "tolerance": 1e-4, "cases": ["2.0 s"]}'
    parity = msgspec.json.decode(stored, type=Parity)
    assert parity.max_relative_difference is None
    assert parity.summary == "at most 2.0e-05 from the reference"
    assert Parity(2e-5, 1e-4, [], 1e-6).summary.endswith("(1.0e-06 of the largest value)")
