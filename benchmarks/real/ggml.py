"""Write a Whisper checkpoint as whisper.cpp reads it: one ggml file in f16 or q8_0.

Source of the format: ``whisper_model_load`` in whisper.cpp's ``src/whisper.cpp``. All numbers are little-endian, all
integers int32. The file is: magic number, eleven sizes, mel filters (channels, bins, float32 values), vocabulary
(number of tokens; length and bytes of each), tensors up to the end of the file. A tensor is: rank, length of its name,
type, dimensions with the last one first, name, data. Names are those of OpenAI's ``.pt`` files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from export.families.whisper.front_end import FRONT_END
from export.families.whisper.layouts import Layout
from export.families.whisper.layouts.base import HEAD
from export.families.whisper.layouts.openai import tensor_names
from runtime.features.log_mel import slaney_mel_filters

MAGIC = 0x67676D6C  # "ggml"
# Values of one block of q8_0, which share one scale: QK8_0 in ggml.
BLOCK = 32
Kind = Literal["f16", "q8_0"]
# ``ggml_ftype`` of the whole file: 1 is mostly f16, 7 mostly q8_0; thousands are the version of quantized blocks, 2.
FILE_TYPES: dict[Kind, int] = {"f16": 1, "q8_0": 2007}
# whisper.cpp adds these in float32. It wants one column for each convolution's bias.
_FLOATS = ("encoder.positional_embedding", "decoder.positional_embedding")
_COLUMNS = ("encoder.conv1.bias", "encoder.conv2.bias")


class GgmlType(IntEnum):
    """Type of a tensor: ``ggml_type`` in ggml."""

    F32 = 0
    F16 = 1
    Q8_0 = 8


def write_ggml(layout: Layout, path: Path, kind: Kind) -> None:
    """Write a checkpoint to ``path``. Matrices are in ``kind``, convolutions in f16, everything else in float32.

    Args:
        layout: the checkpoint.
        path: the file, overwritten if it exists.
        kind: type of the matrices.

    Raises:
        CheckpointInvalidError: a tensor of the checkpoint is missing or cannot be read.
        ValueError: rows of a matrix are not whole blocks of q8_0.
    """
    config = layout.config
    sizes = (
        config.vocab_size,
        config.max_source_positions,
        config.d_model,
        config.encoder_attention_heads,
        config.encoder_layers,
        config.max_target_positions,
        config.d_model,
        config.decoder_attention_heads,
        config.decoder_layers,
        config.num_mel_bins,
        FILE_TYPES[kind],
    )
    filters = slaney_mel_filters(config.num_mel_bins, FRONT_END["n_fft"], FRONT_END["sampling_rate"])
    with path.open("wb") as file:
        _write_integers(file, MAGIC, *sizes, *filters.shape)
        file.write(filters.astype("<f4").tobytes())
        tokens = token_bytes(layout)
        _write_integers(file, len(tokens))
        for token in tokens:
            _write_integers(file, len(token))
            file.write(token)
        for name, values in _tensors(layout):
            _write_tensor(file, name, values, kind)


def _tensors(layout: Layout) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yield each tensor with its name in the file; the head is the embedding, which is stored once."""
    theirs = tensor_names(layout.config.encoder_layers, layout.config.decoder_layers)
    names = {ours: name for name, ours in theirs.items()}
    for _, ours, tensor in layout.tensors():
        if ours != HEAD:
            yield names[ours], tensor.float().numpy()


def _write_tensor(file: BinaryIO, name: str, values: npt.NDArray[np.float32], kind: Kind) -> None:
    if name in _COLUMNS:
        values = values[:, None]
    type_ = tensor_type(name, values.ndim, kind)
    encoded = name.encode()
    _write_integers(file, values.ndim, len(encoded), type_, *reversed(values.shape))
    file.write(encoded)
    match type_:
        case GgmlType.F32:
            file.write(values.astype("<f4").tobytes())
        case GgmlType.F16:
            file.write(values.astype("<f2").tobytes())
        case GgmlType.Q8_0:
            if values.shape[-1] % BLOCK:
                raise ValueError(f"{name} has rows of {values.shape[-1]} values, which are not blocks of {BLOCK}")
            file.write(q8_0_blocks(values).tobytes())


def tensor_type(name: str, rank: int, kind: Kind) -> GgmlType:
    """Return the type of a tensor, as whisper.cpp's own quantization chooses it."""
    if rank == 1 or name in _FLOATS or name in _COLUMNS:
        return GgmlType.F32
    return GgmlType.Q8_0 if rank == 2 and kind == "q8_0" else GgmlType.F16


#: A block of q8_0: values are ``scale * quants``.
Q8_0_BLOCK = np.dtype([("scale", "<f2"), ("quants", "i1", (BLOCK,))])


def q8_0_blocks(values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Quantize values to blocks [values / 32] of :data:`Q8_0_BLOCK`.

    The scale is the largest magnitude of a block divided by 127. Halves are rounded away from zero, as ``roundf`` does
    in ggml's ``quantize_row_q8_0_ref``.
    """
    rows = values.reshape(-1, BLOCK)
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    ratios = np.divide(rows, scales, out=np.zeros_like(rows), where=scales > 0)
    blocks = np.empty(len(rows), Q8_0_BLOCK)
    blocks["scale"] = scales[:, 0]
    blocks["quants"] = np.trunc(ratios + np.copysign(np.float32(0.5), ratios))
    return blocks


def token_bytes(layout: Layout) -> list[bytes]:
    """Return the bytes of every token below the first special one; whisper.cpp names special tokens itself.

    An id without a token, as 50256 in the multilingual vocabulary, has no bytes.
    """
    values = byte_values()
    tokens = (layout.tokenizer.id_to_token(index) for index in range(layout.generation.eos_token_id))
    return [bytes(values[char] for char in token or "") for token in tokens]


def byte_values() -> dict[str, int]:
    """Return the byte of each character in a byte-level vocabulary.

    Printable characters of Latin-1 stand for their own code, and the other bytes in ascending order for the characters
    from U+0100 on. Source: ``bytes_to_unicode`` of GPT-2.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _write_integers(file: BinaryIO, *values: int) -> None:
    file.write(struct.pack(f"<{len(values)}i", *values))
