"""Whisper checkpoints in the layouts of transformers, CTranslate2 and OpenAI give the same artifact."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import WhisperConfig
from typer.testing import CliRunner

from export.__main__ import app
from export.checkpoints import CheckpointFolder
from export.families.whisper.exporter import load_model
from export.families.whisper.layouts import find_layout
from export.families.whisper.layouts.openai import suppressed_tokens
from runtime import Transcriber, open_artifact
from runtime.model.manifest import Manifest
from tests.helpers import whisper_checkpoint
from tests.helpers.whisper_layouts import (
    Precision,
    ctranslate2_variables,
    encode_model,
    find_aliases,
    write_ctranslate2,
    write_openai,
)

pytestmark = pytest.mark.slow

SECONDS = 2


def export(checkpoint: Path, out: Path) -> Any:
    return CliRunner().invoke(app, ["someone/whisper-custom", "--checkpoint", str(checkpoint), "--out", str(out)])


def exported(checkpoint: Path, out: Path) -> Manifest:
    result = export(checkpoint, out)
    assert result.exit_code == 0, result.output
    return open_artifact(out).manifest


def write_checkpoint(folder: Path, *, multilingual: bool = True) -> Path:
    """A checkpoint that suppresses the tokens that OpenAI's code does, which an OpenAI file does not list."""
    whisper_checkpoint.write(folder, positions=SECONDS * 50, multilingual=multilingual)
    suppressed, first = suppressed_tokens(Tokenizer.from_file(str(folder / "tokenizer.json")), folder / "x")
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) | {"suppress_tokens": suppressed, "begin_suppress_tokens": first}
    path.write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("layouts") / "checkpoint")


@pytest.fixture(scope="module")
def artifact(checkpoint: Path) -> Path:
    exported(checkpoint, checkpoint.parent / "artifact")
    return checkpoint.parent / "artifact"


def assert_same(manifest: Manifest, expected: Manifest, layout: str) -> None:
    """The model card names the layout's folder and hash, as ``source`` does; all else is equal."""
    assert manifest.source.layout == layout
    names = {name for name in expected.files if name.endswith((".onnx", ".data", ".json"))}
    assert {"encoder.onnx", "decoder.onnx", "tokenizer.json"} <= names
    assert {name: manifest.files[name] for name in names} == {name: expected.files[name] for name in names}
    changed = msgspec.structs.replace(manifest, source=expected.source, files=expected.files)
    assert changed == expected


@pytest.mark.parametrize("multilingual", [True, False], ids=["multilingual", "english"])
def test_layouts_give_the_same_artifact(multilingual: bool, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "native", multilingual=multilingual)
    expected = exported(checkpoint, tmp_path / "expected")
    assert expected.source.layout == "native"
    assert_same(exported(write_ctranslate2(checkpoint, tmp_path / "ct2"), tmp_path / "a"), expected, "ctranslate2")
    assert_same(exported(write_openai(checkpoint, tmp_path / "pt"), tmp_path / "b"), expected, "openai")


def test_layouts_give_the_same_artifact_in_float16(checkpoint: Path, tmp_path: Path) -> None:
    """A file that is named instead of its folder, and a vocabulary of lines instead of JSON."""
    folder = write_ctranslate2(checkpoint, tmp_path / "ct2", "float16")
    tokens = json.loads((folder / "vocabulary.json").read_text())
    (folder / "vocabulary.json").unlink()
    (folder / "vocabulary.txt").write_text("\n".join(tokens) + "\n")
    ours = exported(folder, tmp_path / "a")
    pt = write_openai(checkpoint, tmp_path / "pt", torch.float16)
    (pt / "other.pt").write_bytes(b"x")
    theirs = exported(pt / "model.pt", tmp_path / "b")
    assert_same(theirs, msgspec.structs.replace(ours, name=theirs.name), "openai")
    assert theirs.source.parameters is not None
    assert theirs.source.repo == "model"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_read_exactly(dtype: torch.dtype, checkpoint: Path, tmp_path: Path) -> None:
    """Weights of 16 bits become the float32 numbers that they stand for, in the layouts of transformers and OpenAI."""
    tensors = load_file(checkpoint / "model.safetensors")
    native = tmp_path / "native"
    shutil.copytree(checkpoint, native)
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, native / "model.safetensors")
    for folder in (native, write_openai(checkpoint, tmp_path / "pt", dtype)):
        opened = CheckpointFolder(folder, "", None)
        loaded = load_model(find_layout(opened)(opened)).state_dict()
        assert loaded.keys() >= tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == torch.float32
            assert torch.equal(loaded[name], tensor.to(dtype).float()), (folder.name, name)


@pytest.mark.parametrize("precision", ["int8", "int8_float16"])
def test_8_bit_weights_are_divided_by_their_scales(
    precision: Precision, checkpoint: Path, artifact: Path, tmp_path: Path
) -> None:
    manifest = exported(write_ctranslate2(checkpoint, tmp_path / "ct2", precision), tmp_path / "x")
    expected = open_artifact(artifact).manifest
    assert manifest.graphs == expected.graphs
    assert manifest.parameters == expected.parameters
    noise = np.random.default_rng(0).standard_normal((1, 80, 2 * SECONDS * 50)).astype(np.float32)
    outputs = []
    for folder in (tmp_path / "x", artifact):
        session = Transcriber.from_artifact(folder).engine._sessions["encoder"]  # type: ignore[attr-defined]
        outputs.append(session.run(None, {"features": noise})[0])
    error = np.linalg.norm(outputs[0] - outputs[1]) / np.linalg.norm(outputs[1])
    assert 1e-4 < error < 0.05  # eight bits


Change = Callable[[Path, Path], object]


def change_model(change: Callable[[Any], object], precision: Precision = "float32", **header: Any) -> Change:
    """A change of a CTranslate2 folder: of its variables, or of the header of `model.bin`."""

    def apply(folder: Path, checkpoint: Path) -> None:
        config = WhisperConfig.from_pretrained(checkpoint)
        variables = ctranslate2_variables(load_file(checkpoint / "model.safetensors"), config, precision)
        change(variables)
        (folder / "model.bin").write_bytes(encode_model(variables, find_aliases(variables), **header))

    return apply


def cut(file: str, count: int) -> Change:
    def apply(folder: Path, _: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[:count] if count < 0 else data + b"x" * count)

    return apply


def rewrite_json(file: str, **changes: Any) -> Change:
    def apply(folder: Path, _: Path) -> None:
        raw = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))

    return apply


def change_pt(change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(folder: Path, _: Path) -> None:
        value = torch.load(folder / "model.pt", weights_only=True)
        change(value)
        torch.save(value, folder / "model.pt")

    return apply


FC, STACKED = "encoder/layer_1/ffn/linear_0/weight", "decoder/layer_0/attention/linear_1"
BLOCK = "decoder.blocks.1.cross_attn.out.bias"
nothing: Callable[[object], None] = lambda _: None  # noqa: E731


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut("model.bin", -1), "model.bin: is truncated at"),
        (cut("model.bin", -30_000), r"model.bin: is truncated at .*, within tensor '"),
        (cut("model.bin", 3), "has 3 bytes after its last alias"),
        (lambda f, _: (f / "model.bin").write_bytes(b""), "model.bin: cannot be read"),
        (lambda f, _: (f / "model.bin").write_bytes(b"\x80\x02}q\x00." * 9), "version .* or another kind of file"),
        (change_model(nothing, version=3), "version 3 of CTranslate2's format"),
        (change_model(nothing, specification="TransformerSpec"), "holds a 'TransformerSpec'"),
        (change_model(nothing, revision=4), "'WhisperSpec' of revision 4"),
        (change_model(lambda v: v.pop(FC)), f"tensor '{FC}' is missing"),
        (change_model(lambda v: v.pop("encoder/conv1/weight")), "tensor 'encoder/conv1/weight' is missing"),
        (change_model(lambda v: v.pop("decoder/num_heads")), "'decoder/num_heads' is missing"),
        (change_model(lambda v: v.pop("decoder/projection/weight")), "'decoder/projection/weight' is missing"),
        (change_model(lambda v: v.update(extra=np.zeros(3, np.float32))), "tensor 'extra' is unexpected"),
        (change_model(lambda v: v.update({FC: v[FC][:-1]})), rf"tensor '{FC}' has shape \[47, 32\].*\[48, 32\]"),
        (
            change_model(lambda v: v.update({f"{STACKED}/weight": v[f"{STACKED}/weight"][:-1]})),
            r"has shape \[63, 32\], which is not 2 stacked",
        ),
        (change_model(lambda v: v[f"{STACKED}/bias"].__setitem__(0, 1)), "a bias for keys that is not zero"),
        (
            change_model(lambda v: v.update({"decoder/projection/weight": v["decoder/embeddings/weight"] + 1})),
            "ties the output head to the embedding",
        ),
        (change_model(lambda v: v.update({"decoder/num_heads": np.array(5, np.int16)})), "is 5, which does not divide"),
        (change_model(lambda v: v.update({"decoder/activation": np.array(0, np.int8)})), "'decoder/activation' is 0"),
        (change_model(lambda v: v.update({"decoder/alibi": np.array(1, np.int8)})), "'decoder/alibi' is 1"),
        (change_model(lambda v: v.update({FC: v[FC].astype(np.int16)})), "is int16; supported are float32"),
        (change_model(lambda v: v.pop(f"{FC}_scale"), "int8"), f"'{FC}_scale' is missing, the scales of"),
        (
            change_model(lambda v: v.update({f"{FC}_scale": v[f"{FC}_scale"][1:]}), "int8"),
            r"has shape \[47\] .* one floating-point scale for each of 48 rows",
        ),
        (change_model(lambda v: v[f"{FC}_scale"].fill(0), "int8"), "scales that are not positive"),
        (rewrite_json("config.json", suppress_ids=None, lang_ids=None), "has neither suppress_ids nor lang_ids"),
        (rewrite_json("config.json", suppress_ids=["x"]), "config.json: Expected `int`"),
        (rewrite_json("config.json", suppress_ids=[9999]), "id 9999 is not in a vocabulary"),
        (rewrite_json("config.json", lang_ids=[3]), "id 3 of lang_ids is not a special token"),
        (lambda f, _: (f / "tokenizer.json").unlink(), "holds no tokenizer; add the tokenizer.json"),
        (lambda f, _: (f / "tokenizer.json").write_text("{"), "not a readable tokenizer"),
        (lambda f, _: (f / "vocabulary.json").write_text('["a", "b"]'), "the id 0, but the tokenizer"),
        (lambda f, _: (f / "vocabulary.json").write_text("{"), "cannot be read as a list of tokens"),
    ],
)
def test_invalid_ctranslate2_folders_are_one_line_errors(
    change: Change, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = write_ctranslate2(checkpoint, tmp_path / "in" / "ct2")
    change(folder, checkpoint)
    assert_refused(folder, message, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut("model.pt", -20_000), "model.pt: not a readable file of tensors only"),
        (lambda f, _: (f / "model.pt").write_bytes(b""), "model.pt: not a readable file of tensors only"),
        (lambda f, _: torch.save({"a": torch.zeros(2)}, f / "model.pt"), "holds no dims and model_state_dict"),
        (lambda f, _: torch.save({"dims": {}, "model_state_dict": Path}, f / "model.pt"), "not a readable file"),
        (change_pt(lambda v: v["dims"].pop("n_mels")), "dims: .*missing required field `n_mels`"),
        (change_pt(lambda v: v["dims"].update(n_text_head=5)), "is 5, which does not divide"),
        (change_pt(lambda v: v["dims"].update(n_text_layer=0)), "decoder_layers is 0, not a positive number"),
        (change_pt(lambda v: v["dims"].update(n_text_layer=3)), "tensor 'decoder.blocks.2.* is missing"),
        (change_pt(lambda v: v["dims"].update(n_text_state=64)), "n_text_state 64, but .* equal widths"),
        (change_pt(lambda v: v["dims"].update(n_mels=128)), r"has shape \[32, 80, 3\], but dims requires"),
        (change_pt(lambda v: v["dims"].update(n_vocab=100)), "which is not in a vocabulary of 100"),
        (change_pt(lambda v: v["model_state_dict"].pop(BLOCK)), f"tensor '{BLOCK}' is missing"),
        (change_pt(lambda v: v["model_state_dict"].update(x=torch.zeros(1))), "tensor 'x' is unexpected"),
        (change_pt(lambda v: v["model_state_dict"].update(x=3)), "other objects than tensors"),
        (lambda f, _: shutil.copy(f / "model.pt", f / "b.pt"), r"several .pt files \(b.pt, model.pt\); name one"),
        (lambda f, _: (f / "tokenizer.json").unlink(), "holds no tokenizer; add the tokenizer.json"),
        (
            lambda f, _: whisper_checkpoint.tokenizer(["<|endoftext|>"]).save(str(f / "tokenizer.json")),
            "the tokenizer has no <|startoftranscript|>",
        ),
    ],
)
def test_invalid_openai_files_are_one_line_errors(
    change: Change, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = write_openai(checkpoint, tmp_path / "in" / "pt")
    change(folder, checkpoint)
    assert_refused(folder, message.replace("<|startoftranscript|>", r"<\|startoftranscript\|>"), tmp_path)


def assert_refused(folder: Path, message: str, tmp_path: Path) -> None:
    """One line, exit code 2, and no file beside the input."""
    result = export(folder, tmp_path / "out")
    assert result.exit_code == 2, result.output
    text = " ".join(result.stderr.split())
    assert re.search(message, text), text
    assert text.count("error:") == 1
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
