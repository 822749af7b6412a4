"""OpenAI's layout: one ``.pt`` file with ``dims`` and ``model_state_dict``, and a tokenizer that is added beside it.

Sources: OpenAI's ``whisper/model.py`` (dimensions and names), ``whisper/decoding.py`` and ``whisper/tokenizer.py``
(suppressed tokens), and published files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from export.checkpoints import CheckpointFolder
from export.errors import CheckpointInvalidError
from export.families.whisper.layouts.base import (
    EMBEDDING,
    Layout,
    check_generation,
    check_names,
    load_added_tokenizer,
    make_config,
    make_generation,
    shape_of,
    special_id,
)
from export.weights import STATE_DICT, NamedTensor, load_pickled, read_pickled

# Modules of a layer: OpenAI's name → transformers' name.
_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
_LAYER = {"attn_ln": "self_attn_layer_norm", "mlp_ln": "final_layer_norm", "mlp.0": "fc1", "mlp.2": "fc2"}
# Text of tokens that are not speech, which OpenAI never generates: brackets, quotes and signs that annotate sound.
_SIGNS = '"#()*+/:;<=>@[\\]^_`{|}~「」『』'
_RUNS = "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪"
# Musical signs. Where one takes several tokens, the first of them is suppressed, which only signs begin with.
_NOTES = "♩♪♫♬♭♮♯"
# Not generated at the beginning of a word.
_WORD_STARTS = (" -", " '")
_SPECIAL = ("<|transcribe|>", "<|translate|>", "<|startoftranscript|>", "<|startofprev|>", "<|startoflm|>")


class _Dimensions(msgspec.Struct, frozen=True):
    """``dims`` of a file."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int


class OpenAILayout(Layout):
    """A ``.pt`` file of OpenAI's, in a folder with a tokenizer."""

    name = "openai"
    described_by = "dims"

    def __init__(self, folder: CheckpointFolder) -> None:
        self.folder = folder
        (self._path,) = folder.weight_files()
        dims = self._load_dims()
        shapes = {name: tuple(tensor.shape) for name, tensor in read_pickled(self._path).items()}
        self.tokenizer = load_added_tokenizer(folder)
        self.config = make_config(
            self._path,
            {
                "d_model": dims.n_audio_state,
                "num_mel_bins": dims.n_mels,
                "vocab_size": dims.n_vocab,
                "max_source_positions": dims.n_audio_ctx,
                "max_target_positions": dims.n_text_ctx,
                "encoder_layers": dims.n_audio_layer,
                "decoder_layers": dims.n_text_layer,
                "encoder_attention_heads": dims.n_audio_head,
                "decoder_attention_heads": dims.n_text_head,
                "encoder_ffn_dim": shape_of(self._path, "encoder.blocks.0.mlp.0.weight", shapes, 2)[0],
                "decoder_ffn_dim": shape_of(self._path, "decoder.blocks.0.mlp.0.weight", shapes, 2)[0],
            },
            self.tokenizer,
        )
        suppressed, first = suppressed_tokens(self.tokenizer, self._path)
        self.generation = make_generation(self._path, self.tokenizer, None, suppressed, first)
        check_generation(self._path, self.generation, self.config.vocab_size)

    @property
    def settings(self) -> Path:
        """The ``.pt`` file."""
        return self._path

    def tensors(self) -> Iterator[NamedTensor]:
        """Yield every tensor. The head is the embedding, which is stored once."""
        tensors = read_pickled(self._path)
        names = tensor_names(self.config.encoder_layers, self.config.decoder_layers)
        check_names(self._path, tensors, names)
        return ((stored_name, name, tensors[stored_name]) for stored_name, name in names.items())

    def _load_dims(self) -> _Dimensions:
        value = load_pickled(self._path)
        if not isinstance(value, dict) or not {"dims", STATE_DICT} <= value.keys():
            raise CheckpointInvalidError(
                f"{self._path}: holds no dims and {STATE_DICT}, so it is not a Whisper checkpoint in OpenAI's layout"
            )
        try:
            dims = msgspec.convert(value["dims"], _Dimensions)
        except msgspec.ValidationError as error:
            raise CheckpointInvalidError(f"{self._path}: dims: {error}") from None
        if dims.n_audio_state != dims.n_text_state:
            raise CheckpointInvalidError(
                f"{self._path}: n_audio_state is {dims.n_audio_state} and n_text_state {dims.n_text_state}, but this "
                "exporter supports only equal widths"
            )
        return dims


def tensor_names(encoder_layers: int, decoder_layers: int) -> dict[str, str]:
    """Names of all tensors in the file, and in transformers' model."""
    names = {"decoder.token_embedding.weight": EMBEDDING}
    modules = {"encoder.ln_post": "model.encoder.layer_norm", "decoder.ln": "model.decoder.layer_norm"}
    modules |= {f"encoder.{conv}": f"model.encoder.{conv}" for conv in ("conv1", "conv2")}
    for side, count in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        names[f"{side}.positional_embedding"] = f"model.{side}.embed_positions.weight"
        for index in range(count):
            stored, layer = f"{side}.blocks.{index}", f"model.{side}.layers.{index}"
            modules |= {f"{stored}.{theirs}": f"{layer}.{ours}" for theirs, ours in _LAYER.items()}
            attentions = {"attn": "self_attn"}
            if side == "decoder":
                modules[f"{stored}.cross_attn_ln"] = f"{layer}.encoder_attn_layer_norm"
                attentions["cross_attn"] = "encoder_attn"
            modules |= {
                f"{stored}.{theirs}.{projection}": f"{layer}.{ours}.{name}"
                for theirs, ours in attentions.items()
                for projection, name in _ATTENTION.items()
            }
    for stored, module in modules.items():
        kinds = ("weight",) if stored.endswith(".key") else ("weight", "bias")
        names |= {f"{stored}.{kind}": f"{module}.{kind}" for kind in kinds}
    return names


def suppressed_tokens(tokenizer: Tokenizer, path: Path) -> tuple[list[int], list[int]]:
    """Tokens that OpenAI's decoding suppresses by default, which the file does not list.

    Returns:
        Tokens that are never generated, and tokens that are not generated first, in ascending order.

    Raises:
        CheckpointInvalidError: the tokenizer lacks a special token.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    suppressed = {encode(text)[0] for text in _WORD_STARTS}
    for text in (*_SIGNS, *_RUNS.split(), *_NOTES):
        for ids in (encode(text), encode(f" {text}")):
            if len(ids) == 1 or text in _NOTES:
                suppressed.add(ids[0])
    blank = encode(" ")
    suppressed -= {*blank}  # in a vocabulary without merges " ♪" begins with the token of every space
    suppressed |= {special_id(tokenizer, token, path) for token in _SPECIAL}
    # The token before <|notimestamps|>, whose name differs between sizes.
    suppressed.add(special_id(tokenizer, "<|notimestamps|>", path) - 1)
    return sorted(suppressed), sorted({*blank, special_id(tokenizer, "<|endoftext|>", path)})
