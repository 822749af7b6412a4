"""Tests of broken tokenizers: each family's export and the runtime refuse them with one sentence."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from export.__main__ import app
from export.checkpoints import CheckpointFolder
from export.errors import CheckpointInvalidError
from export.tokenizer import load_tokenizer
from runtime.__main__ import app as runtime_app
from runtime.model.tokenizer import read_tokenizer, refusals
from tests.conftest import ARTIFACT, CHECKPOINT, DATA
from tests.helpers import gigaam_checkpoint, whisper_checkpoint
from tests.helpers.broken_tokenizer import with_tokenizer

PARAKEET = CHECKPOINT.parent / "parakeet-tdt-tiny"
NOISE = random.Random(1).randbytes(300)
WHOLE = (CHECKPOINT / "tokenizer.json").read_bytes()
BROKEN = {
    "empty": b"",
    "cut": WHOLE[: len(WHOLE) // 2],
    "another object": b"{}",
    "a list": b"[]",
    "noise": NOISE,
    "a folder": None,
    "long": b'"' + b"x" * 100_000 + b'"',
    "no tokens": b'{"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}',
    # The Rust code of tokenizers panics on this file.
    "a wrong normalizer": b'{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "model": {}}',
}


def put(path: Path, data: bytes | None) -> None:
    """Replace a file by ``data``, or by a folder if ``data`` is None."""
    path.unlink(missing_ok=True)
    if data is None:
        path.mkdir()
    else:
        path.write_bytes(data)


def without_weights(source: Path, folder: Path) -> Path:
    """Copy a checkpoint without its weights. Exports read the tokenizer first."""
    return Path(shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin")))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoint folders by model name of the command line."""
    root = tmp_path_factory.mktemp("checkpoints")
    whisper_checkpoint.write(root / "whisper")
    return {
        "qwen3-asr-tiny": CHECKPOINT,
        "whisper-large-v3-turbo": root / "whisper",
        "parakeet-tdt-tiny": PARAKEET,
        "gigaam-v3-e2e-ctc": gigaam_checkpoint.write("e2e_ctc", root / "gigaam", **gigaam_checkpoint.TINY),
    }


def refused(name: str, folder: Path, out: Path) -> str:
    """Return the exporter's error, and check that it is one sentence with exit code 2."""
    result = CliRunner().invoke(app, [name, "--checkpoint", str(folder), "--out", str(out)])
    assert result.exit_code == 2, result.output
    assert not out.exists()
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 500 + len(str(folder))
    return line


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("name", ["qwen3-asr-tiny", "whisper-large-v3-turbo", "parakeet-tdt-tiny"])
def test_export_refuses_a_broken_tokenizer(
    name: str, broken: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = without_weights(checkpoints[name], tmp_path / "checkpoint")
    put(folder / "tokenizer.json", BROKEN[broken])
    error = refused(name, folder, tmp_path / "out")
    assert f"{folder / 'tokenizer.json'}: " in error
    assert error.endswith("; download the checkpoint again")


def test_export_refuses_a_checkpoint_without_tokenizer(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = without_weights(checkpoints["parakeet-tdt-tiny"], tmp_path / "checkpoint")
    (folder / "tokenizer.json").unlink()
    error = refused("parakeet-tdt-tiny", folder, tmp_path / "out")
    assert f"{folder / 'tokenizer.json'}: " in error
    assert "is missing" in error


@pytest.mark.parametrize("broken", ["empty", "another object", "noise", "a folder", "cut"])
def test_export_refuses_a_broken_sentencepiece_model(broken: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = without_weights(checkpoints["gigaam-v3-e2e-ctc"], tmp_path / "checkpoint")
    path = folder / "tokenizer.model"
    put(path, path.read_bytes()[:700] if broken == "cut" else BROKEN[broken])
    error = refused("gigaam-v3-e2e-ctc", folder, tmp_path / "out")
    assert f"{path}: " in error
    assert error.endswith("; download the checkpoint again")


@pytest.mark.parametrize("vocabulary", [["\ud800", "a"], ["ab"], ["a", "a"], [""]])
def test_export_refuses_invalid_characters(vocabulary: list[str], checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = without_weights(checkpoints["gigaam-v3-e2e-ctc"], tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["cfg"]["model"]["cfg"]["decoding"] = {"vocabulary": vocabulary}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "single characters" in refused("gigaam-v3-ctc", folder, tmp_path / "out")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Folder with the small tokenizer as vocabulary, merges and configuration."""
    whole = json.loads(WHOLE)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in whole["model"]["merges"]]
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}', encoding="utf-8")
    return folder


def configured(**values: Any) -> bytes:
    return json.dumps(values).encode()


@pytest.mark.parametrize(
    ("name", "data", "culprit"),
    [
        ("vocab.json", b'{"a": 1, "b', "vocab.json: "),
        ("vocab.json", b"", "vocab.json: "),
        ("vocab.json", NOISE, "vocab.json: "),
        ("vocab.json", b"[" * 100_000, "vocab.json: "),
        ("vocab.json", b"[]", "vocab.json: "),
        ("vocab.json", b"{}", "parts: "),
        ("vocab.json", b'{"a": 1.5}', "parts: "),
        ("merges.txt", b"", "merges.txt: "),
        ("merges.txt", b"#version: 0.2\n\n", "merges.txt: "),
        ("merges.txt", NOISE, "merges.txt: "),
        ("merges.txt", b"{}", "parts: "),
        ("merges.txt", None, "merges.txt: "),
        ("tokenizer_config.json", b"{", "tokenizer_config.json: "),
        ("tokenizer_config.json", configured(tokenizer_class=3), "parts: "),
        ("tokenizer_config.json", configured(tokenizer_class="ByT5Tokenizer"), "parts: "),
        (
            "tokenizer_config.json",
            configured(tokenizer_class="X", auto_map={"AutoTokenizer": ["own.Tokenizer", None]}),
            "parts: ",
        ),
        ("special_tokens_map.json", b"{", "parts: "),
    ],
)
@pytest.mark.parametrize("family", ["qwen3-asr-tiny", "whisper-large-v3-turbo"])
def test_export_refuses_broken_parts(
    family: str,
    name: str,
    data: bytes | None,
    culprit: str,
    parts: Path,
    checkpoints: dict[str, Path],
    tmp_path: Path,
) -> None:
    put(parts / name, data)
    for file in ("config.json", "generation_config.json"):
        if (checkpoints[family] / file).exists():
            shutil.copy(checkpoints[family] / file, parts)
    assert culprit in refused(family, parts, tmp_path / "out")


def test_configuration_that_is_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointInvalidError, match=r"config.json: .*Is a directory"):
        CheckpointFolder(tmp_path, "x", None).config()


def test_code_of_a_checkpoint_is_never_run(parts: Path) -> None:
    """transformers would ask for permission on a terminal."""
    (parts / "own.py").write_text("raise SystemExit('it ran')")
    put(parts / "tokenizer_config.json", configured(auto_map={"AutoTokenizer": ["own.Tokenizer", None]}))
    with pytest.raises(CheckpointInvalidError, match=str(parts)):
        load_tokenizer(CheckpointFolder(parts, "x", None))


@pytest.mark.parametrize("broken", BROKEN)
def test_reason_is_one_short_line(broken: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    put(path, BROKEN[broken])
    with pytest.raises(ValueError, match=r".") as caught:
        read_tokenizer(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), MemoryError()])
def test_errors_of_other_code_pass_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, refusals():
        raise error
    assert caught.value is error


def transcribed(folder: Path) -> str:
    """Return the error of ``transcribe``, and check that it is one sentence with exit code 2."""
    result = CliRunner().invoke(runtime_app, ["transcribe", str(DATA / "en-1.wav"), "--model", str(folder)])
    assert result.exit_code == 2, result.output
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (WHOLE[:-9], "bytes, expected"),
        (bytes(len((ARTIFACT / "tokenizer.json").read_bytes())), "the file was altered"),
        (None, "file of the model is missing"),
    ],
)
def test_runtime_refuses_an_altered_tokenizer(data: bytes | None, message: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ARTIFACT, tmp_path / "model"))
    put(folder / "tokenizer.json", data)
    error = transcribed(folder)
    assert f"{folder / 'tokenizer.json'}: " in error
    assert message in error
    assert error.endswith("export the model again")


@pytest.mark.parametrize("data", [data for data in BROKEN.values() if data is not None])
def test_runtime_refuses_a_broken_tokenizer(data: bytes, tmp_path: Path) -> None:
    folder = with_tokenizer(ARTIFACT, tmp_path / "model", data)
    error = transcribed(folder)
    assert f"{folder / 'tokenizer.json'}: not a readable tokenizer (" in error
    assert error.endswith("; export the model again")
