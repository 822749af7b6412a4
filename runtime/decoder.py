"""A decoder-with-past graph with its keys and values in preallocated buffers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from runtime.artifact import GraphSpec
from runtime.buffers import Binding, RowBuffer, input_location

# Buffers grow in steps of this many positions, so that segments of like length share them.
_GRANULE = 128

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class CausalDecoder:
    """Prefill and step over rows that share one set of buffers.

    Each layer's keys and values live in one array ``[rows, kv_heads, capacity, head_dim]``, bound both as past and as
    present, where the graph's provider has its memory: new positions are written in place and nothing is ever copied.
    The inputs of a step are arrays that are changed in place.

    Rows may differ in length: prompts are padded on the right, and row sums of the attention mask say how much of each
    row counts.
    """

    def __init__(self, session: ort.InferenceSession, spec: GraphSpec, *, audio_id: int, context_length: int) -> None:
        """``audio_id`` is the placeholder that audio rows replace; ``context_length`` the graph's positions."""
        self._session, self._audio_id, self._context_length = session, audio_id, context_length
        past = [tensor for tensor in spec.inputs if tensor.name.startswith("past_key_values.")]
        _, heads, _, size = past[0].shape
        logits = next(tensor for tensor in spec.outputs if tensor.name == "logits")
        audio = next(tensor for tensor in spec.inputs if tensor.name == "audio_embeds")
        self._kv_names = [tensor.name for tensor in past]
        self._kv_dtype = np.dtype(past[0].dtype)
        self.layers, self.kv_heads, self.head_dim = len(past) // 2, int(heads), int(size)
        self.vocab_size, self.hidden_size = int(logits.shape[-1]), int(audio.shape[-1])
        self._capacity = self._rows = 0
        self._buffers: list[RowBuffer] = []
        self._where = input_location(session, self._kv_names[0])
        self._step: Binding | None = None

    def empty_past(self, rows: int = 1) -> dict[str, npt.NDArray[Any]]:
        """Keys and values [rows, kv_heads, 0, head_dim] by input name: what a run without buffers begins with."""
        shape = (rows, self.kv_heads, 0, self.head_dim)
        return {name: np.zeros(shape, self._kv_dtype) for name in self._kv_names}

    def _reserve(self, rows: int, positions: int) -> None:
        """Make the buffers hold ``rows`` × ``positions``; keeps them when they do."""
        if rows == self._rows and positions <= self._capacity:
            return
        if positions > self._context_length:
            raise ValueError(f"{positions} positions are more than the {self._context_length} of the graph")
        capacity = min(-(-positions // _GRANULE) * _GRANULE, self._context_length)
        shape = (rows, self.kv_heads, capacity, self.head_dim)
        # Let go of the old ones before the new are made, and know of none if these do not fit into memory.
        self._step, self._rows, self._capacity = None, 0, 0
        self._buffers = []
        self._buffers = [RowBuffer(shape, self._kv_dtype, self._where) for _ in self._kv_names]
        self._lengths = np.zeros(rows, np.int64)
        self._tokens = np.zeros((rows, 1), np.int64)
        self._mask = np.zeros((rows, capacity), np.int64)
        self._logits = np.zeros((rows, 1, self.vocab_size), np.float32)
        self._step = self._binding(
            self._tokens,
            self._mask,
            np.zeros((0, self.hidden_size), np.float32),
            self._logits,
        )
        self._rows, self._capacity = rows, capacity

    def _binding(self, ids: Ids, mask: Ids, audio: Floats, logits: Floats, rows: slice = slice(None)) -> Binding:
        keep = np.array([0 if logits.shape[1] == ids.shape[1] else logits.shape[1]], np.int64)
        inputs: dict[str, npt.NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": mask,
            "audio_embeds": audio,
            "num_logits_to_keep": keep,
        }
        made = Binding(self._session)
        for name, array in inputs.items():
            made.bind_input(name, array)
        made.bind_output("logits", logits)
        for name, buffer in zip(self._kv_names, self._buffers, strict=True):
            made.bind_rows(name, name.replace("past_key_values", "present"), buffer, rows)
        return made

    def prefill(self, prompts: list[list[int]], audio_embeds: Floats, budget: int, *, all_rows: bool = False) -> Floats:
        """Start ``len(prompts)`` rows; earlier contents of the buffers are forgotten.

        Args:
            prompts: token ids of each row; placeholders for audio in order of rows.
            audio_embeds: [N, hidden], one row a placeholder over all prompts.
            budget: positions to keep free for the steps that follow.
            all_rows: logits of every prompt position instead of each row's last.

        Returns:
            Logits [rows, 1, vocab], or [rows, longest prompt, vocab]: rows past a prompt's end are meaningless.

        Raises:
            ValueError: as many audio rows as placeholders are needed.
        """
        if sum(prompt.count(self._audio_id) for prompt in prompts) != len(audio_embeds):
            raise ValueError(f"{len(audio_embeds)} audio rows do not fit the prompts' placeholders")
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        rows, longest = len(prompts), int(lengths.max())
        self._reserve(rows, longest + budget)
        ids = np.zeros((rows, longest), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        logits = np.empty((rows, longest if all_rows else 1, self.vocab_size), np.float32)
        audio = np.ascontiguousarray(audio_embeds, np.float32)
        self._binding(ids, mask, audio, logits).run()
        self._lengths[:] = lengths
        self._mask[:] = np.arange(self._capacity) < lengths[:, None]
        return logits

    def open_rows(self, rows: int, positions: int) -> None:
        """Make room for ``rows`` × ``positions``, all of them idle; earlier contents are forgotten."""
        self._reserve(rows, positions)
        self._lengths[:] = 0
        self._tokens[:] = 0
        self._mask[:] = 0
        self._mask[:, 0] = 1  # an idle row steps too: it must have a position to write to, and it is overwritten later

    def prefill_row(self, row: int, prompt: list[int], audio_embeds: Floats) -> Floats:
        """Start one row while the others wait; returns the logits [vocab] of its first token.

        Raises:
            ValueError: as many audio rows as placeholders are needed, or the prompt is longer than the row.
        """
        if prompt.count(self._audio_id) != len(audio_embeds):
            raise ValueError(f"{len(audio_embeds)} audio rows do not fit the prompt's placeholders")
        if len(prompt) > self._capacity:
            raise ValueError(f"a prompt of {len(prompt)} does not fit a row of {self._capacity} positions")
        logits = np.empty((1, 1, self.vocab_size), np.float32)
        audio = np.ascontiguousarray(audio_embeds, np.float32)
        ids = np.array([prompt], np.int64)
        self._binding(ids, np.ones_like(ids), audio, logits, slice(row, row + 1)).run()
        self._lengths[row] = len(prompt)
        self._mask[row] = np.arange(self._capacity) < len(prompt)
        first: Floats = logits[0, 0]
        return first

    def step_rows(self, tokens: dict[int, int]) -> Floats:
        """Append a token to each row of ``tokens``; returns logits [rows, vocab], valid until the next call.

        Rows that are not named stay as they are, and their logits are meaningless.
        """
        rows = list(tokens)
        if self._step is None or int(self._lengths[rows].max()) >= self._capacity:
            raise ValueError("no room for another position: open or prefill with a larger budget")
        self._tokens[rows, 0] = list(tokens.values())
        self._mask[rows, self._lengths[rows]] = 1
        self._lengths[rows] += 1
        self._step.run()
        return self._logits[:, 0]

    def step(self, tokens: list[int]) -> Floats:
        """Append one token to every row; returns logits [rows, vocab], valid until the next call."""
        return self.step_rows(dict(enumerate(tokens)))
