"""The default model: where it is found, and what is said where it is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.__main__ import app
from runtime.errors import ArtifactInvalidError, ArtifactNotFoundError
from runtime.model import bundled
from runtime.model.artifact import open_artifact
from runtime.model.bundled import BUNDLED_MODEL, default_model
from tests.conftest import ARTIFACT, DATA, REPOSITORY
from tools.real_model import LARGEST


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The package ``runtime`` of a source tree that has no artifact."""
    (tmp_path / "Makefile").touch()
    folder = tmp_path / "runtime"
    folder.mkdir()
    return folder


def test_a_source_tree_has_it_in_its_artifacts() -> None:
    folder = default_model()
    assert folder == REPOSITORY / "artifacts" / BUNDLED_MODEL
    artifact = open_artifact(folder)
    assert artifact.manifest.name == BUNDLED_MODEL
    assert len(artifact.manifest.languages) == 99
    assert artifact.size <= LARGEST


def test_an_installed_package_has_it_inside(package: Path) -> None:
    shutil.copytree(ARTIFACT, package / "default_model")
    assert default_model(package) == package / "default_model"


def test_a_source_tree_without_it_says_how_to_make_it(package: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match=rf"manifest\.json: .*run `make real-model` in {package.parent}"):
        default_model(package)


def test_an_incomplete_checkout_names_the_missing_file(package: Path) -> None:
    shutil.copytree(ARTIFACT, package.parent / "artifacts" / BUNDLED_MODEL)
    (package.parent / "artifacts" / BUNDLED_MODEL / "encoder.onnx").unlink()
    with pytest.raises(ArtifactNotFoundError, match=r"encoder\.onnx: .*incomplete; run `make real-model`"):
        default_model(package)


def test_an_installation_without_it_needs_a_model(package: Path) -> None:
    (package.parent / "Makefile").unlink()
    with pytest.raises(ArtifactNotFoundError, match="no bundled model; give the folder of a model with --model"):
        default_model(package)


def test_a_damaged_manifest_is_named(package: Path) -> None:
    folder = package / "default_model"
    folder.mkdir()
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactInvalidError, match=r"manifest\.json"):
        default_model(package)


@pytest.mark.parametrize(
    "command",
    [
        ("transcribe", str(DATA / "en-1.wav")),
        ("batch", str(DATA / "en-1.wav"), "--out", "{tmp}/out.jsonl"),
        ("stream", str(DATA / "en-1.wav")),
        ("serve", "--port", "0"),
        ("prepare",),
        ("benchmark",),
        ("evaluate", "--data", str(DATA)),
        ("providers", "--compare", "cpu"),
    ],
    ids=lambda command: str(command[0]),
)
def test_every_command_reports_a_missing_default_in_one_sentence(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "BUNDLED_MODEL", "missing")
    result = CliRunner().invoke(app, [part.format(tmp=tmp_path) for part in command])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "make real-model" in line
    assert not list(tmp_path.iterdir())


def test_the_families_are_listed_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "BUNDLED_MODEL", "missing")
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0
    assert "bundled model: none (" in result.stdout.splitlines()[-1]
