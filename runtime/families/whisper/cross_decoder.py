"""Decoder with cross-attention: the audio's keys and values lie beside the text's, in rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from runtime.decoding.kv_rows import RowDecoder, lazy_zeros
from runtime.model.manifest import GraphSpec
from runtime.ort.io_binding import Binding, RowBuffer

Floats = npt.NDArray[np.float32]
Arrays = Sequence[npt.NDArray[Any]]

_PREFIX = "cross_key_values."


class CrossDecoder(RowDecoder):
    """Rows of text, each with the keys and values of its own audio: ``[rows, heads, positions, head_dim]`` a layer.

    Audio is a list of arrays, the graph's ``cross_key_values.*`` in order, each [rows, heads, positions, head_dim]. It
    is copied into the row with the prompt; later passes and steps read it there until it is replaced.
    """

    def __init__(self, session: ort.InferenceSession, spec: GraphSpec, *, context_length: int) -> None:
        """``context_length``: text positions that the graph supports."""
        cross = [tensor for tensor in spec.inputs if tensor.name.startswith(_PREFIX)]
        self.cross_names = [tensor.name for tensor in cross]
        self._cross_shapes = [tuple(int(size) for size in tensor.shape[1:]) for tensor in cross]
        self._cross_dtypes = [np.dtype(tensor.dtype) for tensor in cross]
        self._cross: list[RowBuffer] = []
        super().__init__(session, spec, context_length=context_length)

    @property
    def cross_bytes(self) -> int:
        """Bytes of one row's audio in all layers."""
        sizes = zip(self._cross_shapes, self._cross_dtypes, strict=True)
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in sizes)

    def _close(self) -> None:
        self._cross = []
        super()._close()

    def open_rows(self, rows: int, positions: int) -> None:
        """Allocate buffers for exactly ``rows`` × ``positions`` and for each row's audio; discard earlier contents."""
        if (rows, positions) == self.layout:
            return
        super().open_rows(rows, positions)
        # In host memory, where rows can be written; for a graph on a device ONNX Runtime copies them there.
        self._cross = [
            RowBuffer((rows, *shape), dtype, zeros=lazy_zeros)
            for shape, dtype in zip(self._cross_shapes, self._cross_dtypes, strict=True)
        ]

    def _accept(self, rows: slice, prompts: Sequence[Sequence[int]], audio: Arrays | None) -> None:  # noqa: ARG002
        if audio is None:
            return
        count = len(range(*rows.indices(self.layout[0])))
        expected = [(count, *shape) for shape in self._cross_shapes]
        if (shapes := [each.shape for each in audio]) != expected:
            raise ValueError(f"the audio's keys and values have shapes {shapes[:2]}…, expected {expected[:2]}…")
        for buffer, array in zip(self._cross, audio, strict=True):
            buffer.array[rows] = array

    def _bind_audio(self, binding: Binding, rows: slice, accepted: None) -> None:  # noqa: ARG002
        for name, buffer in zip(self.cross_names, self._cross, strict=True):
            binding.bind_input(name, buffer.array[rows])

    def move_row(self, source: int, target: int) -> None:
        """Copy the text and audio of row ``source`` into row ``target``."""
        super().move_row(source, target)
        for buffer in self._cross:
            buffer.array[target] = buffer.array[source]

    def next_logits(self, ids: Sequence[int], audio: Arrays) -> Floats:
        """Return the logits [B, vocab] after the tokens ``ids`` for B audios, without using any row."""
        count = len(audio[0])
        feeds = self.feeds(np.tile(np.array(ids, np.int64), (count, 1)), audio, logits_count=1)
        logits: Floats = self._session.run(["logits"], feeds)[0]
        return logits[:, 0]

    def feeds(self, ids: npt.NDArray[np.int64], audio: Arrays, *, logits_count: int) -> dict[str, npt.NDArray[Any]]:
        """Return the graph's inputs for ``ids`` [B, S] from the start, with logits of the last ``logits_count``."""
        return {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "num_logits_to_keep": np.array([logits_count], np.int64),
            **self.empty_past(len(ids)),
            **dict(zip(self.cross_names, audio, strict=True)),
        }
