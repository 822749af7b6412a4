"""The ggml file for whisper.cpp, read back by a small reader."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from benchmarks.real import ggml
from export.checkpoints import find_checkpoint, locate
from export.families.whisper.layouts import Layout, find_layout
from runtime.features.log_mel import slaney_mel_filters
from tests.helpers import whisper_checkpoint

SIZES = (
    "vocabulary",
    "audio_positions",
    "audio_width",
    "audio_heads",
    "audio_layers",
    "text_positions",
    "text_width",
    "text_heads",
    "text_layers",
    "mels",
    "type",
)


class GgmlFile:
    """What whisper.cpp reads: sizes by name, filters [mels, bins], tokens, tensors with the number of their type."""

    def __init__(self, path: Path) -> None:
        self._data, self._position = path.read_bytes(), 0
        assert self._integers(1) == (0x67676D6C,)
        self.sizes = dict(zip(SIZES, self._integers(len(SIZES)), strict=True))
        shape = self._integers(2)
        self.filters = self._array(np.dtype("<f4"), shape)
        self.tokens = [self._take(*self._integers(1)) for _ in range(*self._integers(1))]
        self.tensors: dict[str, tuple[int, npt.NDArray[np.float32]]] = {}
        while self._position < len(self._data):
            rank, length, kind = self._integers(3)
            shape = self._integers(rank)[::-1]
            name = self._take(length).decode()
            assert name not in self.tensors
            self.tensors[name] = kind, self._values(kind, shape)

    def _values(self, kind: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        if kind == 8:
            blocks = self._array(np.dtype([("scale", "<f2"), ("quants", "i1", (32,))]), (int(np.prod(shape)) // 32,))
            values: npt.NDArray[np.float32] = blocks["scale"].astype(np.float32)[:, None] * blocks["quants"]
            return values.reshape(shape)
        return self._array(np.dtype({0: "<f4", 1: "<f2"}[kind]), shape).astype(np.float32)

    def _array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        return np.frombuffer(self._take(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)

    def _integers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}i", self._take(4 * count))

    def _take(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        assert self._position <= len(self._data)
        return self._data[start : self._position]


def open_layout(folder: Path) -> Layout:
    located = locate(find_checkpoint("openai/whisper-base"), folder)
    return find_layout(located)(located)


def test_a_checkpoint_is_written_whole(tmp_path: Path) -> None:
    model = whisper_checkpoint.write(tmp_path / "checkpoint")
    ggml.write_ggml(open_layout(tmp_path / "checkpoint"), tmp_path / "model.bin", "f16")
    file, config, weights = GgmlFile(tmp_path / "model.bin"), model.config, model.model.state_dict()
    assert file.sizes == {
        "vocabulary": config.vocab_size,
        "audio_positions": 100,
        "audio_width": 32,
        "audio_heads": 2,
        "audio_layers": 2,
        "text_positions": 96,
        "text_width": 32,
        "text_heads": 4,
        "text_layers": 2,
        "mels": 80,
        "type": 1,
    }
    assert np.array_equal(file.filters, slaney_mel_filters(80, 400, 16_000).astype(np.float32))
    assert len(file.tensors) == len(weights)
    assert sum(values.size for _, values in file.tensors.values()) == sum(each.numel() for each in weights.values())
    for name, ours, kind in (
        ("encoder.conv1.weight", "encoder.conv1.weight", 1),
        ("encoder.positional_embedding", "encoder.embed_positions.weight", 0),
        ("encoder.ln_post.bias", "encoder.layer_norm.bias", 0),
        ("encoder.blocks.1.attn.key.weight", "encoder.layers.1.self_attn.k_proj.weight", 1),
        ("decoder.token_embedding.weight", "decoder.embed_tokens.weight", 1),
        ("decoder.blocks.0.cross_attn.out.bias", "decoder.layers.0.encoder_attn.out_proj.bias", 0),
        ("decoder.blocks.1.mlp.2.weight", "decoder.layers.1.fc2.weight", 1),
    ):
        expected = weights[ours].numpy()
        stored, values = file.tensors[name]
        assert stored == kind, name
        assert np.array_equal(values, expected.astype(np.float16) if kind else expected), name
    kind, bias = file.tensors["encoder.conv1.bias"]
    assert (kind, bias.shape) == (0, (32, 1))
    assert np.array_equal(bias[:, 0], weights["encoder.conv1.bias"].numpy())


def test_tokens_are_the_bytes_below_the_special_ones() -> None:
    tokenizer = _Tokens({0: "A", 1: "Ġé", 2: "ĊÐ", 4: "<|endoftext|>"})
    layout: Any = SimpleNamespace(tokenizer=tokenizer, generation=SimpleNamespace(eos_token_id=4))
    assert ggml.token_bytes(layout) == [b"A", b" \xe9", b"\n\xd0", b""]  # id 3 has no token


class _Tokens:
    def __init__(self, tokens: dict[int, str]) -> None:
        self.id_to_token = tokens.get


def test_every_byte_has_the_character_of_byte_level_vocabularies() -> None:
    values = ggml.byte_values()
    assert set(values) == set(ByteLevel.alphabet())
    assert sorted(values.values()) == list(range(256))
    assert (values["A"], values["Ġ"], values["Ċ"], values["é"]) == (0x41, 0x20, 0x0A, 0xE9)


def tensors_of(name: str, values: npt.NDArray[np.float32]) -> Any:
    """Layout with one tensor, by its name in transformers' model."""
    config = SimpleNamespace(
        vocab_size=9, max_source_positions=4, d_model=64, encoder_attention_heads=1, encoder_layers=1,
        max_target_positions=4, decoder_attention_heads=1, decoder_layers=1, num_mel_bins=2,
    )  # fmt: skip
    return SimpleNamespace(
        config=config,
        generation=SimpleNamespace(eos_token_id=0),
        tokenizer=None,
        tensors=lambda: iter([("stored", name, torch.from_numpy(values))]),
    )


def test_q8_0_has_one_scale_for_32_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    values[0, :32] = 0
    ggml.write_ggml(tensors_of("model.encoder.layers.0.fc1.weight", values), tmp_path / "model.bin", "q8_0")
    file = GgmlFile(tmp_path / "model.bin")
    kind, stored = file.tensors["encoder.blocks.0.mlp.0.weight"]
    assert file.sizes["type"] == 2007
    assert kind == 8
    scales = np.abs(values.reshape(-1, 32)).max(axis=1) / 127
    errors = np.abs(stored - values).reshape(-1, 32).max(axis=1)
    assert (errors <= 0.55 * scales).all()  # half a step, and the rounding of the scale to half precision
    assert errors.max() > 0.3 * scales.max()
    assert not stored[0, :32].any()


def test_q8_0_rounds_halves_away_from_zero() -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, :5] = [127, 0.5, -0.5, 2.5, -1.4]
    (block,) = ggml.q8_0_blocks(values)
    assert block["scale"] == 1
    assert block["quants"][:5].tolist() == [127, 1, -1, 3, -1]


@pytest.mark.parametrize(
    ("name", "rank", "kind"),
    [
        ("decoder.token_embedding.weight", 2, 8),
        ("encoder.conv2.weight", 3, 1),
        ("encoder.conv2.bias", 2, 0),
        ("decoder.positional_embedding", 2, 0),
        ("decoder.ln.weight", 1, 0),
    ],
)
def test_only_matrices_are_quantized(name: str, rank: int, kind: int) -> None:
    assert ggml.tensor_type(name, rank, "q8_0") == kind


def test_rows_that_are_not_whole_blocks_are_refused(tmp_path: Path) -> None:
    layout = tensors_of("model.encoder.layers.0.fc2.weight", np.zeros((8, 48), np.float32))
    with pytest.raises(ValueError, match=r"encoder\.blocks\.0\.mlp\.2\.weight has rows of 48 values"):
        ggml.write_ggml(layout, tmp_path / "model.bin", "q8_0")
