"""The layout of CTranslate2 and faster-whisper: ``model.bin`` with its own ``config.json`` and a vocabulary.

Sources: CTranslate2's ``specs/whisper_spec.py`` and ``converters/transformers.py``, and published models.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from torch import Tensor
from transformers import WhisperConfig

from export.checkpoints import AGAIN, CheckpointFolder
from export.ctranslate2_file import CTranslate2File
from export.errors import CheckpointInvalidError
from export.families.whisper.layouts.base import (
    EMBEDDING,
    HEAD,
    Layout,
    check_generation,
    check_names,
    load_added_tokenizer,
    make_config,
    make_generation,
    shape_of,
    split_rows,
)
from export.weights import NamedTensor

SPECIFICATION, REVISION = "WhisperSpec", 3
VOCABULARIES = ("vocabulary.json", "vocabulary.txt")
STORED_EMBEDDING, STORED_HEAD = "decoder/embeddings/weight", "decoder/projection/weight"
# Names of one token in tokenizers of different ages.
_NO_SPEECH = {"<|nospeech|>", "<|nocaptions|>"}
# Projections that are stacked in rows: the linear layer → modules of transformers' attention, in order.
_SELF = {"linear_0": ("q_proj", "k_proj", "v_proj"), "linear_1": ("out_proj",)}
_CROSS = {"linear_0": ("q_proj",), "linear_1": ("k_proj", "v_proj"), "linear_2": ("out_proj",)}
_NORM = {"gamma": "weight", "beta": "bias"}
# Settings by the last part of their names. Those that change nothing here: heads are read or not needed, and ALiBi is
# off. Every setting that is not listed must be 0, which is off.
_READ_OR_UNUSED = ("num_heads", "alignment_heads", "alignment_layer", "alibi_use_positive_positions", "scale_alibi")
_GELU = 3  # ``Activation.GELU`` of CTranslate2's ``specs/common_spec.py``
_SETTINGS = {"activation": _GELU, "pre_norm": 1}


class _Settings(msgspec.Struct, frozen=True):
    """``config.json`` as CTranslate2's converter writes it."""

    suppress_ids: list[int] | None = None
    suppress_ids_begin: list[int] | None = None
    lang_ids: list[int] | None = None


class CTranslate2Layout(Layout):
    """A folder in the layout of CTranslate2, with weights in float32, float16, bfloat16 or int8."""

    name = "ctranslate2"
    described_by = "the other tensors"

    def __init__(self, folder: CheckpointFolder) -> None:
        self.folder = folder
        (path,) = folder.weight_files()
        settings = self._load_settings()
        self._file = file = CTranslate2File(path)
        if (file.specification, file.revision) != (SPECIFICATION, REVISION):
            raise CheckpointInvalidError(
                f"{path}: holds a {file.specification!r} of revision {file.revision}, not a {SPECIFICATION!r} of "
                f"revision {REVISION}"
            )
        self._check_scalars()
        self.tokenizer = load_added_tokenizer(folder)
        self.config = self._make_config()
        self._check_vocabulary()
        self.generation = make_generation(
            self.settings, self.tokenizer, settings.lang_ids, settings.suppress_ids, settings.suppress_ids_begin
        )
        check_generation(self.settings, self.generation, self.config.vocab_size)

    @property
    def settings(self) -> Path:
        """``config.json``."""
        return self.folder.path / "config.json"

    def tensors(self) -> Iterator[NamedTensor]:
        """Yield every tensor; stacked projections are split."""
        names = tensor_names(self.config.encoder_layers, self.config.decoder_layers)
        # CTranslate2 stores equal weights once, so a tied head is an alias of the embedding.
        if self._file.aliases.get(STORED_HEAD) == STORED_EMBEDDING:
            del names[STORED_HEAD]
        check_names(self._file.path, {*self._file.names()} - ({STORED_HEAD} - {*names}), names)
        for stored_name, parts in names.items():
            tensor = self._file.read(stored_name)
            for name, part in zip(parts, split_rows(self._file.path, stored_name, tensor, len(parts)), strict=True):
                if name.endswith("k_proj.bias"):
                    self._check_zero(stored_name, part)
                else:
                    yield stored_name, name, part

    def _check_zero(self, stored_name: str, part: Tensor) -> None:
        """The stacked bias of keys, which Whisper does not have."""
        if part.any():
            raise CheckpointInvalidError(
                f"{self._file.path}: tensor {stored_name!r} has a bias for keys that is not zero, which Whisper lacks"
            )

    def _load_settings(self) -> _Settings:
        raw = self.folder.config()
        if not {"suppress_ids", "lang_ids"} & raw.keys():
            raise CheckpointInvalidError(
                f"{self.settings}: has neither suppress_ids nor lang_ids, so it is not the config.json that belongs to "
                f"a Whisper model of CTranslate2; {AGAIN}"
            )
        try:
            return msgspec.convert(raw, _Settings)
        except msgspec.ValidationError as error:
            raise CheckpointInvalidError(f"{self.settings}: {error}") from None

    def _check_scalars(self) -> None:
        for name in self._file.scalars():
            key = name.rpartition("/")[2]
            expected, value = _SETTINGS.get(key, 0), self._file.scalar(name)
            if key not in _READ_OR_UNUSED and value != expected:
                raise CheckpointInvalidError(
                    f"{self._file.path}: {name!r} is {value}, but this exporter supports only {expected}"
                )

    def _make_config(self) -> WhisperConfig:
        file = self._file
        shapes = {name: file.variables[name].shape for name in file.names()}

        def shape(name: str, rank: int = 2) -> tuple[int, ...]:
            return shape_of(file.path, name, shapes, rank)

        def layers(side: str) -> int:
            parts = {name.split("/")[1] for name in shapes if name.startswith(f"{side}/layer_")}
            return len(parts - {"layer_norm"})

        width, mels, _ = shape("encoder/conv1/weight", 3)
        decoder_heads = file.scalar("decoder/num_heads")
        encoder_heads = "encoder/num_heads"
        return make_config(
            file.path,
            {
                "d_model": width,
                "num_mel_bins": mels,
                "vocab_size": shape(STORED_EMBEDDING)[0],
                "max_source_positions": shape("encoder/position_encodings/encodings")[0],
                "max_target_positions": shape("decoder/position_encodings/encodings")[0],
                "encoder_layers": layers("encoder"),
                "decoder_layers": layers("decoder"),
                "encoder_attention_heads": file.scalar(encoder_heads)
                if encoder_heads in file.variables
                else decoder_heads,
                "decoder_attention_heads": decoder_heads,
                "encoder_ffn_dim": shape("encoder/layer_0/ffn/linear_0/weight")[0],
                "decoder_ffn_dim": shape("decoder/layer_0/ffn/linear_0/weight")[0],
            },
            self.tokenizer,
        )

    def _check_vocabulary(self) -> None:
        """Check the tokenizer, which may come from another model, against the vocabulary.

        Raises:
            CheckpointInvalidError: a token has another id in the vocabulary, or the vocabulary cannot be read.
        """
        paths = [self.folder.path / name for name in VOCABULARIES]
        path = next((each for each in paths if each.is_file()), None)
        if path is None:
            return
        try:
            text = path.read_text(encoding="utf-8")
            tokens = (
                text.removesuffix("\n").split("\n")
                if path.suffix == ".txt"
                else msgspec.json.decode(text, type=list[str])
            )
        except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
            raise CheckpointInvalidError(f"{path}: cannot be read as a list of tokens ({error}); {AGAIN}") from None
        for token, index in sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1]):
            listed = tokens[index] if index < len(tokens) else None
            if listed != token and {listed, token} != _NO_SPEECH:
                raise CheckpointInvalidError(
                    f"{path}: has {listed!r} for the id {index}, but the tokenizer {token!r}: they belong to different "
                    "models"
                )


def tensor_names(encoder_layers: int, decoder_layers: int) -> dict[str, tuple[str, ...]]:
    """Names of all tensors in the file, and what is stacked in each, by names in transformers' model."""
    names: dict[str, tuple[str, ...]] = {STORED_EMBEDDING: (EMBEDDING,), STORED_HEAD: (HEAD,)}
    for conv in ("conv1", "conv2"):
        names |= {f"encoder/{conv}/{kind}": (f"model.encoder.{conv}.{kind}",) for kind in ("weight", "bias")}
    for side, count in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        names[f"{side}/position_encodings/encodings"] = (f"model.{side}.embed_positions.weight",)
        norms = {f"{side}/layer_norm": f"model.{side}.layer_norm"}
        linears: dict[str, tuple[str, ...]] = {}
        for index in range(count):
            stored, layer = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
            norms |= {
                f"{stored}/self_attention/layer_norm": f"{layer}.self_attn_layer_norm",
                f"{stored}/ffn/layer_norm": f"{layer}.final_layer_norm",
            }
            linears |= {
                f"{stored}/ffn/linear_0": (f"{layer}.fc1",),
                f"{stored}/ffn/linear_1": (f"{layer}.fc2",),
            }
            attentions = [("self_attention", "self_attn", _SELF)]
            if side == "decoder":
                norms[f"{stored}/attention/layer_norm"] = f"{layer}.encoder_attn_layer_norm"
                attentions.append(("attention", "encoder_attn", _CROSS))
            linears |= {
                f"{stored}/{stored_attention}/{linear}": tuple(f"{layer}.{attention}.{part}" for part in parts)
                for stored_attention, attention, projections in attentions
                for linear, parts in projections.items()
            }
        for stored, norm in norms.items():
            names |= {f"{stored}/{kind}": (f"{norm}.{ours}",) for kind, ours in _NORM.items()}
        for stored, modules in linears.items():
            names |= {f"{stored}/{kind}": tuple(f"{each}.{kind}" for each in modules) for kind in ("weight", "bias")}
    return names
