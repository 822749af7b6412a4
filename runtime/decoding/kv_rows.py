"""A decoder-with-past graph with its keys and values in preallocated buffers."""

from __future__ import annotations

import math
import mmap
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from runtime.model.manifest import GraphSpec
from runtime.ort.io_binding import HOST, Binding, RowBuffer, input_location

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


# Token ids that :meth:`CausalDecoder.compare_passes` tries: common ones of any vocabulary, as a prompt and a text.
_TRIED = [(37 * index) % 199 + 1 for index in range(56)]
_TRIED_PROMPT = 32


def untouched(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Zeros in pages that the system hands out when they are first written to.

    ``np.zeros`` asks for huge pages, and so a row of which a third is used would take all of its memory.
    """
    size = math.prod(shape) * dtype.itemsize
    private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    try:
        return np.frombuffer(mmap.mmap(-1, size, **private), dtype).reshape(shape)
    except OSError as error:
        raise MemoryError(f"{size} bytes for keys and values") from error


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Keys and values of the first ``length`` positions of a text, outside of rows: each [kv_heads, length, size]."""

    length: int
    arrays: list[npt.NDArray[Any]]


class PassComparison(NamedTuple):
    """Whether a pass over many tokens computes what steps over them do, and whether a prompt in two passes what one in
    one pass does: bit for bit, on this machine, with this graph.
    """

    steps: bool
    splits: bool


class RowDecoder(ABC):
    """Prefill and step over rows that share one set of buffers; what audio is to the graph, a subclass says.

    Each layer's keys and values live in one array ``[rows, kv_heads, positions, head_dim]``, bound both as past and as
    present, where the graph's provider has its memory: new positions are written in place and nothing is ever copied.
    A prefill is bound to one row of them, a step to the first so many; rows behind those cost nothing.

    Rows may differ in length: prompts are padded on the right, and row sums of the attention mask say how much of each
    row counts.
    """

    def __init__(self, session: ort.InferenceSession, spec: GraphSpec, *, context_length: int) -> None:
        """``context_length``: the graph's positions."""
        self._session, self._spec, self.context_length = session, spec, context_length
        past = [tensor for tensor in spec.inputs if tensor.name.startswith("past_key_values.")]
        _, heads, _, size = past[0].shape
        logits = next(tensor for tensor in spec.outputs if tensor.name == "logits")
        self._kv_names = [tensor.name for tensor in past]
        self._kv_dtype = np.dtype(past[0].dtype)
        self.layers, self.kv_heads, self.head_dim = len(past) // 2, int(heads), int(size)
        self.vocab_size = int(logits.shape[-1])
        self._where = input_location(session, self._kv_names[0])
        self._close()

    @abstractmethod
    def _accept(self, rows: slice, prompts: Sequence[Sequence[int]], audio: Any) -> Any:
        """Check the audio that comes with tokens for some rows, and take it; None when there is none.

        Returns:
            What :meth:`_bind_audio` needs.

        Raises:
            ValueError: it does not fit.
        """

    @abstractmethod
    def _bind_audio(self, made: Binding, rows: slice, accepted: Any) -> None:
        """Bind the graph's inputs that are audio."""

    @property
    def layout(self) -> tuple[int, int]:
        """(rows, positions of each) of the buffers; (0, 0) before they are made."""
        return len(self._lengths), self._mask.shape[1]

    @property
    def position_bytes(self) -> int:
        """Bytes of one position's keys and values in all layers."""
        return len(self._kv_names) * self.kv_heads * self.head_dim * self._kv_dtype.itemsize

    def empty_past(self, rows: int = 1) -> dict[str, npt.NDArray[Any]]:
        """Keys and values [rows, kv_heads, 0, head_dim] by input name: what a run without buffers begins with."""
        shape = (rows, self.kv_heads, 0, self.head_dim)
        return {name: np.zeros(shape, self._kv_dtype) for name in self._kv_names}

    def _close(self) -> None:
        self._steps: dict[int, Binding] = {}
        self._buffers: list[RowBuffer] = []
        self._arrange(0, 0)

    def _arrange(self, rows: int, positions: int) -> None:
        self._lengths = np.zeros(rows, np.int64)
        self._tokens = np.zeros((rows, 1), np.int64)
        self._mask = np.zeros((rows, positions), np.int64)
        self._logits = np.zeros((rows, 1, self.vocab_size), np.float32)

    def open_rows(self, rows: int, positions: int) -> None:
        """Make room for exactly ``rows`` × ``positions``; earlier contents are forgotten.

        The buffers are zeros that the system hands out when they are first written to: positions that no text reaches
        take no memory.

        Raises:
            ValueError: more positions than the graph has.
        """
        if positions > self.context_length:
            raise ValueError(f"{positions} positions are more than the {self.context_length} of the graph")
        if (rows, positions) == self.layout:
            return
        self._close()  # let go of the old ones before the new are made, and know of none if these do not fit
        shape = (rows, self.kv_heads, positions, self.head_dim)
        self._buffers = [RowBuffer(shape, self._kv_dtype, self._where, untouched) for _ in self._kv_names]
        self._arrange(rows, positions)

    def _binding(self, ids: Ids, mask: Ids, accepted: Any, logits: Floats, rows: slice) -> Binding:
        keep = np.array([0 if logits.shape[1] == ids.shape[1] else logits.shape[1]], np.int64)
        inputs: dict[str, npt.NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": mask,
            "num_logits_to_keep": keep,
        }
        made = Binding(self._session)
        for name, array in inputs.items():
            made.bind_input(name, array)
        self._bind_audio(made, rows, accepted)
        made.bind_output("logits", logits)
        for name, buffer in zip(self._kv_names, self._buffers, strict=True):
            made.bind_rows(name, name.replace("past_key_values", "present"), buffer, rows)
        return made

    def prefill(self, prompts: list[list[int]], audio: Any, budget: int, *, all_rows: bool = False) -> Floats:
        """Start ``len(prompts)`` rows at once, with room for ``budget`` more positions each.

        Args:
            prompts: token ids of each row.
            audio: of all rows.
            budget: positions to keep free for the steps that follow.
            all_rows: logits of every prompt position instead of each row's last.

        Returns:
            Logits [rows, 1, vocab], or [rows, longest prompt, vocab]: rows past a prompt's end are meaningless.

        Raises:
            ValueError: the audio does not fit the prompts.
        """
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        rows, longest = len(prompts), int(lengths.max())
        if rows != self.layout[0] or longest + budget > self.layout[1]:
            self.open_rows(rows, longest + budget)
        accepted = self._accept(slice(None), prompts, audio)
        ids = np.zeros((rows, longest), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        logits = np.empty((rows, longest if all_rows else 1, self.vocab_size), np.float32)
        self._binding(ids, mask, accepted, logits, slice(None)).run()
        self._set_lengths(slice(None), lengths)
        return logits

    def prefill_row(self, row: int, prompt: list[int], audio: Any) -> Floats:
        """Start one row while the others wait; returns the logits [vocab] of its first token.

        Raises:
            ValueError: the audio does not fit the prompt, or the prompt is longer than the row.
        """
        self.cut_row(row, 0)
        first: Floats = self.extend_row(row, prompt, audio)[0]
        return first

    def extend_row(self, row: int, ids: Sequence[int], audio: Any, keep: int = 1) -> Floats:
        """Append ``ids`` to what a row holds, in one pass, while the others wait.

        Args:
            row: which one; see :meth:`cut_row` and :meth:`restore_row` for what it begins with.
            ids: token ids.
            audio: what comes with them, or None.
            keep: of how many of the last positions logits are wanted.

        Returns:
            Logits [keep, vocab].

        Raises:
            ValueError: the audio does not fit the ids, or the row is too short.
        """
        accepted = self._accept(slice(row, row + 1), [ids], audio)
        length = int(self._lengths[row]) + len(ids)
        if length > self.layout[1]:
            raise ValueError(f"{length} positions do not fit a row of {self.layout[1]}")
        logits: Floats = np.empty((1, keep, self.vocab_size), np.float32)
        mask = np.ones((1, length), np.int64)
        self._binding(np.array([ids], np.int64), mask, accepted, logits, slice(row, row + 1)).run()
        self._set_lengths(slice(row, row + 1), np.array([length], np.int64))
        wanted: Floats = logits[0]
        return wanted

    def cut_row(self, row: int, length: int) -> None:
        """Forget what a row holds behind its first ``length`` positions."""
        self._set_lengths(slice(row, row + 1), np.minimum(self._lengths[row : row + 1], length))

    def keep_row(self, row: int, length: int) -> Kept:
        """A copy of the first ``length`` positions that a row holds; for rows that are :attr:`movable`.

        Raises:
            ValueError: the row holds fewer.
        """
        if length > self._lengths[row]:
            raise ValueError(f"row {row} holds {self._lengths[row]} positions, not {length}")
        return Kept(length, [buffer.array[row, :, :length].copy() for buffer in self._buffers])

    def restore_row(self, row: int, kept: Kept, length: int) -> None:
        """Let a row hold the first ``length`` positions of what was kept, and nothing else."""
        for buffer, array in zip(self._buffers, kept.arrays, strict=True):
            buffer.array[row, :, :length] = array[:, :length]
        self._set_lengths(slice(row, row + 1), np.array([length], np.int64))

    def _set_lengths(self, rows: slice, lengths: Ids) -> None:
        self._lengths[rows] = lengths
        self._mask[rows] = np.arange(self.layout[1]) < lengths[:, None]

    @property
    def movable(self) -> bool:
        """Whether :meth:`move_row` works: rows on a device stay where they are."""
        return self._where == HOST

    def move_row(self, source: int, target: int) -> None:
        """Copy what the row ``source`` holds into the row ``target``; see :attr:`movable`."""
        length = self._lengths[source]
        for buffer in self._buffers:
            buffer.array[target, :, :length] = buffer.array[source, :, :length]
        self._set_lengths(slice(target, target + 1), self._lengths[source : source + 1])

    def step(self, tokens: Sequence[int | None]) -> Floats:
        """Append a token to each of the first ``len(tokens)`` rows; logits [rows, vocab], valid until the next call.

        A row without one is idle: what it held is forgotten, and its logits are meaningless.

        Raises:
            ValueError: one of the rows is full.
        """
        count = len(tokens)
        lengths = self._lengths[:count]
        if not 0 < count <= self.layout[0] or int(lengths.max()) >= self.layout[1]:
            raise ValueError("no room for another position: open or prefill with a larger budget")
        for row in (row for row, token in enumerate(tokens) if token is None):
            # It steps all the same: it must have a position to write to, which its next prefill overwrites.
            self._set_lengths(slice(row, row + 1), np.zeros(1, np.int64))
        self._tokens[:count, 0] = [token or 0 for token in tokens]
        self._mask[np.arange(count), lengths] = 1
        lengths += 1
        if count not in self._steps:
            none = self._accept(slice(count), (), None)
            self._steps[count] = self._binding(
                self._tokens[:count], self._mask[:count], none, self._logits[:count], slice(count)
            )
        self._steps[count].run()
        return self._logits[:count, 0]


class CausalDecoder(RowDecoder):
    """A decoder whose audio is in its prompts: embedding rows ``audio_embeds[N, hidden]`` in the places of a token.

    Audio is [N, hidden], one row a placeholder, in order of rows and positions.
    """

    def __init__(self, session: ort.InferenceSession, spec: GraphSpec, *, audio_id: int, context_length: int) -> None:
        """``audio_id`` is the placeholder that audio rows replace; ``context_length`` the graph's positions."""
        super().__init__(session, spec, context_length=context_length)
        self._audio_id = audio_id
        audio = next(tensor for tensor in spec.inputs if tensor.name == "audio_embeds")
        self.hidden_size = int(audio.shape[-1])

    def _accept(self, rows: slice, prompts: Sequence[Sequence[int]], audio: Any) -> Floats:  # noqa: ARG002
        given = np.zeros((0, self.hidden_size), np.float32) if audio is None else audio
        placeholders = sum(list(prompt).count(self._audio_id) for prompt in prompts)
        if placeholders != len(given):
            raise ValueError(f"{len(given)} audio rows do not fit the prompt's {placeholders} placeholders")
        return np.ascontiguousarray(given, np.float32)

    def _bind_audio(self, made: Binding, rows: slice, accepted: Floats) -> None:  # noqa: ARG002
        made.bind_input("audio_embeds", accepted)

    def compare_passes(self) -> PassComparison:
        """Try how exact passes are, in a row of its own: whatever is decoded meanwhile is not touched."""
        other = CausalDecoder(self._session, self._spec, audio_id=self._audio_id, context_length=self.context_length)
        prompt, half, text = _TRIED[:_TRIED_PROMPT], _TRIED_PROMPT // 2, _TRIED[_TRIED_PROMPT:]
        ids = [token for token in (each % self.vocab_size for each in prompt) if token != self._audio_id]
        other.open_rows(1, len(_TRIED))
        whole = other.prefill_row(0, ids, None)
        stepped = [other.step([token])[0].copy() for token in text]
        other.cut_row(0, len(ids))
        steps = np.array_equal(other.extend_row(0, text, None, len(text)), stepped)
        other.prefill_row(0, ids[:half], None)
        splits = np.array_equal(other.extend_row(0, ids[half:], None)[0], whole)
        splits = splits and np.array_equal(other.extend_row(0, text, None, len(text)), stepped)
        return PassComparison(steps, splits)
