"""Export of GigaAM checkpoints, and errors for invalid ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

from export.checkpoints import CheckpointFolder
from export.compare import FrameCase
from export.errors import CheckpointInvalidError, CheckpointNotFoundError, ParityError
from export.families.gigaam import parity as gigaam_parity
from export.families.gigaam.exporter import GigaAM
from quantize.products import find_products
from quantize.progress import Report
from runtime.model.manifest import Language
from tests.helpers.gigaam_checkpoint import LETTERS, TINY, write


@pytest.fixture
def characters(tmp_path: Path) -> Path:
    return write("ctc", tmp_path / "ctc", **TINY)


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    return write("e2e_ctc", tmp_path / "e2e_ctc", **TINY)


def load(folder: Path) -> GigaAM:
    return GigaAM(CheckpointFolder(folder, "owner/name", None))


def edit_config(folder: Path, path: str, value: Any) -> None:
    """Set the key at ``path`` of the configuration, or remove it if ``value`` is ``...``."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    *parents, key = path.split(".")
    inner = config
    for parent in parents:
        inner = inner[parent]
    if value is ...:
        del inner[key]
    else:
        inner[key] = value
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "pytorch_model.bin"
    tensors = {name: tensor.clone() for name, tensor in torch.load(path, weights_only=True).items()}
    change(tensors)
    torch.save(tensors, path)


def test_checkpoint_with_a_vocabulary_of_characters(characters: Path) -> None:
    family = load(characters)
    assert family.languages == [Language("Russian", "ru")]
    assert family.front_end == {
        "kind": "htk-log-mel",
        "sample_rate": 16_000,
        "n_fft": 320,
        "hop_length": 160,
        "n_mels": 64,
        "min_samples": 320,
    }
    assert family.parameters == {
        "subsampling": 4,
        "positions": 1500,
        "vocab_size": 34,
        "blank_id": 33,
        "heads": 4,
        "hidden": 128,
        "segment_seconds": 25.0,
    }
    assert [family.tokenizer.id_to_token(index) for index in range(33)] == LETTERS
    ids = family.tokenizer.encode("да, нет").ids
    assert [LETTERS[index] for index in ids] == list("да нет")  # the comma is not in the vocabulary
    assert family.tokenizer.decode(ids) == "да нет"


def test_checkpoint_with_a_sentencepiece_model(pieces: Path) -> None:
    family = load(pieces)
    assert (family.parameters["vocab_size"], family.parameters["blank_id"]) == (121, 120)
    assert family.tokenizer.decode(family.tokenizer.encode("Да, нет.").ids) == "Да, нет."


def test_weights_equal_the_file(characters: Path) -> None:
    model = load(characters).model
    stored = torch.load(characters / "pytorch_model.bin", weights_only=True)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter.flatten(), stored[f"model.{name}"].float().flatten(), rtol=0, atol=0)


def test_safetensors_without_prefix_and_tables_load_equally(characters: Path) -> None:
    """Names have no prefix, and the front end's tables are absent."""
    expected = load(characters).model.state_dict()
    stored = torch.load(characters / "pytorch_model.bin", weights_only=True)
    plain = {name.removeprefix("model."): tensor for name, tensor in stored.items() if "preprocessor" not in name}
    save_file(plain, characters / "model.safetensors")
    (characters / "pytorch_model.bin").write_bytes(b"not read")
    loaded = load(characters).model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


INNER = "cfg.model.cfg"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("cfg", {}, "has no cfg.model.cfg"),
        ("cfg", ["model"], "has no cfg.model.cfg"),
        (INNER, [], "model_class is None"),
        (f"{INNER}.model_class", "rnnt", "model_class is 'rnnt': .* only 'ctc'"),
        (f"{INNER}.head", ..., "cfg.model.cfg: Object missing required field `head`"),
        (f"{INNER}.encoder.n_layers", "16", r"Expected `int`, got `str` - at `\$.encoder.n_layers`"),
        (f"{INNER}.encoder.subsampling", ..., "encoder.subsampling is 'conv2d', .* only 'conv1d'"),
        (f"{INNER}.encoder.conv_norm_type", "batch_norm", "only 'layer_norm'"),
        (f"{INNER}.encoder.self_attention_model", "rel_pos", "only 'rotary'"),
        (f"{INNER}.encoder.subsampling_factor", 8, "encoder.subsampling_factor is 8, .* only 4"),
        (f"{INNER}.encoder.conv_kernel_size", 4, "encoder.conv_kernel_size modulo 2 is 0"),
        (f"{INNER}.encoder.feat_in", 80, "encoder.feat_in is 80, .* only 64"),
        (f"{INNER}.encoder.n_heads", 5, "contradicts itself: d_model 32, n_heads 5"),
        (f"{INNER}.encoder.n_layers", 0, "contradicts itself"),
        (f"{INNER}.head.feat_in", 768, "head.feat_in is 768, .* only 32"),
        (f"{INNER}.head.num_classes", 33, "num_classes is 33, but the vocabulary's 33 tokens and the blank are 34"),
        (f"{INNER}.preprocessor.center", True, "preprocessor.center is True"),
        (f"{INNER}.preprocessor.mel_norm", "slaney", "preprocessor.mel_norm is 'slaney', .* only None"),
        (f"{INNER}.preprocessor.win_length", 400, "preprocessor.win_length is 400, .* only 320"),
        (f"{INNER}.preprocessor.hop_length", -1, "cfg.model.cfg.preprocessor: .* make no front end"),
        (f"{INNER}.decoding.vocabulary", None, "has neither a vocabulary nor a model_path"),
        (f"{INNER}.decoding.vocabulary", ["а", "бв"], "must be single characters, once each"),
        (f"{INNER}.decoding.vocabulary", ["а", "а"], "must be single characters, once each"),
        ("segment_seconds", "long", "segment_seconds is 'long', .* at most 60"),
        ("segment_seconds", 61, "segment_seconds is 61"),
    ],
)
def test_unsupported_configurations_are_one_line_errors(path: str, value: Any, message: str, characters: Path) -> None:
    edit_config(characters, path, value)
    with pytest.raises(CheckpointInvalidError, match=message) as caught:
        load(characters)
    assert str(caught.value).startswith(str(characters / "config.json"))
    assert "\n" not in str(caught.value)


NAME = "model.encoder.layers.0.conv.pointwise_conv1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), r"tensor 'encoder.layers.0.conv.pointwise_conv1.weight' is missing$"),
        (lambda t: [t.pop(name) for name in list(t) if ".layers.1." in name], r"is missing \(and 33 more\)"),
        (lambda t: t.update(extra=torch.zeros(1)), "tensor 'extra' is unexpected"),
        (lambda t: t.update({NAME: t[NAME][..., 0]}), r"has shape \[64, 32\], .*\[64, 32, 1\]"),
        (lambda t: t.update({NAME: t[NAME].int()}), "is torch.int32: quantized checkpoints cannot be exported"),
        (
            lambda t: t["model.preprocessor.featurizer.0.mel_scale.fb"].mul_(0.5),
            r"mel_scale.fb' differs by .* from the runtime",
        ),
        (
            lambda t: t.update({"model.preprocessor.featurizer.0.spectrogram.window": torch.hann_window(400)}),
            r"has shape \[400\], .*\[320\]",
        ),
    ],
)
def test_wrong_weights_are_one_line_errors(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, characters: Path
) -> None:
    edit_weights(characters, change)
    with pytest.raises(CheckpointInvalidError, match=message) as caught:
        load(characters)
    assert "\n" not in str(caught.value)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self._target),)


def test_pickled_objects_are_refused_and_not_run(characters: Path, tmp_path: Path) -> None:
    target = tmp_path / "created"
    torch.save({NAME: Malicious(target)}, characters / "pytorch_model.bin")
    with pytest.raises(CheckpointInvalidError, match=r"pytorch_model.bin: not a readable file") as caught:
        load(characters)
    assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("value", [[torch.zeros(1)], torch.zeros(1), {1: torch.zeros(1)}, {"state_dict": {}}])
def test_pickled_file_without_tensors_by_name_is_refused(value: object, characters: Path) -> None:
    torch.save(value, characters / "pytorch_model.bin")
    with pytest.raises(CheckpointInvalidError, match=r"pytorch_model.bin: contains other objects"):
        load(characters)


@pytest.mark.parametrize("size", [0, 10, 5_000])
def test_truncated_file_is_a_one_line_error(size: int, characters: Path) -> None:
    path = characters / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointInvalidError, match=r"pytorch_model.bin: not a readable file.* \(((?!\. ).)*\)$"):
        load(characters)


def test_missing_files_are_named(pieces: Path) -> None:
    (pieces / "tokenizer.model").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"tokenizer.model: .* missing"):
        load(pieces)
    edit_config(pieces, f"{INNER}.decoding", {"vocabulary": LETTERS})
    edit_config(pieces, f"{INNER}.head.num_classes", 34)
    (pieces / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"model.safetensors: .* missing"):
        load(pieces)


@pytest.mark.slow
def test_graph_equals_the_module(pieces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with Report() as report:
        family = load(pieces)
        graphs = family.write(out, report)
        cases = gigaam_parity.encoder_cases(family.model, family._front_end)
        parity = family.parity(out, graphs, report)
    assert graphs.keys() == parity.keys() == {"encoder"}
    assert 0 < (parity["encoder"].max_relative_difference or 1) <= parity["encoder"].tolerance == 1e-4
    assert parity["encoder"].cases == ["0.02 s", "0.6 s", "2.3 s", "25 s", "batch of 4"]
    shapes = {tensor.name: tensor.shape for tensor in (*graphs["encoder"].inputs, *graphs["encoder"].outputs)}
    assert shapes == {
        "features": ["clips", 64, "frames"],
        "lengths": ["clips"],
        "log_probs": ["clips", "tokens", 121],
        "encoded_lengths": ["clips"],
    }

    # Quantization finds all large weights, under the names of their modules.
    products = {product.name: product for product in find_products(ir.load(out / "encoder.onnx").graph)}
    assert {name.rsplit("/", 1)[0] for name in products} == {
        "/head/decoder_layers/0",
        *(f"/encoder/pre_encode/conv/{index}" for index in (0, 2)),
        *(
            f"/encoder/layers/{layer}/{part}"
            for layer in range(2)
            for part in (
                *(f"feed_forward{half}/linear{index}" for half in (1, 2) for index in (1, 2)),
                *(f"self_attn/linear_{name}" for name in ("q", "k", "v", "out")),
                *(f"conv/pointwise_conv{index}" for index in (1, 2)),
            )
        ),
    }

    changed = FrameCase("changed", cases[0].features, cases[0].lengths, [cases[0].expected[0] + 1e-3])
    with pytest.raises(ParityError, match=r"encoder, changed: the graph differs"):
        gigaam_parity.check_encoder([changed], out / "encoder.onnx")
