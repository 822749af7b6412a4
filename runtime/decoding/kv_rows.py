"""Decoder-with-past graphs: prefill and step over rows whose keys and values live in preallocated buffers."""

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


# Token ids for :meth:`CausalDecoder.compare_passes`, a prompt and a text: small ids exist in every vocabulary.
_TEST_IDS = [(37 * index) % 199 + 1 for index in range(56)]
_TEST_PROMPT = 32


def lazy_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Allocate zeros in pages that take memory only when they are first written to.

    ``np.zeros`` requests huge pages, so a row that is one third full would take the memory of a full one.

    Raises:
        MemoryError: the system refuses the allocation.
    """
    size = math.prod(shape) * dtype.itemsize
    private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    try:
        return np.frombuffer(mmap.mmap(-1, size, **private), dtype).reshape(shape)
    except OSError as error:
        raise MemoryError(f"{size} bytes for keys and values") from error


@dataclass(frozen=True, slots=True, eq=False)
class RowSnapshot:
    """A copy of keys and values of a row's first ``length`` positions: per tensor [kv_heads, length, head_dim]."""

    length: int
    arrays: list[npt.NDArray[Any]]


class PassComparison(NamedTuple):
    """Bitwise equality of passes on this machine with this graph.

    ``steps``: a pass over many tokens equals single steps over them. ``splits``: a prompt in two passes equals the
    prompt in one pass.
    """

    steps: bool
    splits: bool


class RowDecoder(ABC):
    """Prefill and step over rows that share one set of buffers; a subclass binds the audio inputs.

    Each layer's keys and values live in one array ``[rows, kv_heads, positions, head_dim]`` in the provider's memory,
    bound both as past and as present: new positions are written in place, and nothing is copied. A prefill binds one
    row, a step binds the first rows; rows behind them cost nothing.

    Rows may differ in length: prompts are padded on the right, and the row sums of the attention mask are the lengths.
    """

    def __init__(self, session: ort.InferenceSession, spec: GraphSpec, *, context_length: int) -> None:
        """``context_length``: positions that the graph supports."""
        self._session, self._spec, self.context_length = session, spec, context_length
        past = [tensor for tensor in spec.inputs if tensor.name.startswith("past_key_values.")]
        _, heads, _, size = past[0].shape
        logits = next(tensor for tensor in spec.outputs if tensor.name == "logits")
        self._kv_names = [tensor.name for tensor in past]
        self._kv_dtype = np.dtype(past[0].dtype)
        self.layers, self.kv_heads, self.head_dim = len(past) // 2, int(heads), int(size)
        self.vocab_size = int(logits.shape[-1])
        self._location = input_location(session, self._kv_names[0])
        self._close()

    @abstractmethod
    def _accept(self, rows: slice, prompts: Sequence[Sequence[int]], audio: Any) -> Any:
        """Check the audio for the prompts of some rows and store it; ``audio`` is None when there is none.

        Returns:
            The value that :meth:`_bind_audio` needs.

        Raises:
            ValueError: the audio does not fit the prompts.
        """

    @abstractmethod
    def _bind_audio(self, binding: Binding, rows: slice, accepted: Any) -> None:
        """Bind the graph's audio inputs."""

    @property
    def layout(self) -> tuple[int, int]:
        """(rows, positions per row) of the buffers; (0, 0) before :meth:`open_rows`."""
        return len(self._lengths), self._mask.shape[1]

    @property
    def position_bytes(self) -> int:
        """Bytes of one position's keys and values in all layers."""
        return len(self._kv_names) * self.kv_heads * self.head_dim * self._kv_dtype.itemsize

    def empty_past(self, rows: int = 1) -> dict[str, npt.NDArray[Any]]:
        """Empty keys and values [rows, kv_heads, 0, head_dim] by input name, for a run without buffers."""
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
        """Allocate buffers for exactly ``rows`` × ``positions`` and discard earlier contents.

        Positions that no text reaches take no memory (:func:`lazy_zeros`).

        Raises:
            ValueError: more positions than the graph supports.
        """
        if positions > self.context_length:
            raise ValueError(f"{positions} positions are more than the {self.context_length} of the graph")
        if (rows, positions) == self.layout:
            return
        self._close()  # free the old buffers first; none are open if the new ones do not fit
        shape = (rows, self.kv_heads, positions, self.head_dim)
        self._buffers = [RowBuffer(shape, self._kv_dtype, self._location, lazy_zeros) for _ in self._kv_names]
        self._arrange(rows, positions)

    def _binding(self, ids: Ids, mask: Ids, accepted: Any, logits: Floats, rows: slice) -> Binding:
        keep = np.array([0 if logits.shape[1] == ids.shape[1] else logits.shape[1]], np.int64)
        inputs: dict[str, npt.NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": mask,
            "num_logits_to_keep": keep,
        }
        binding = Binding(self._session)
        for name, array in inputs.items():
            binding.bind_input(name, array)
        self._bind_audio(binding, rows, accepted)
        binding.bind_output("logits", logits)
        for name, buffer in zip(self._kv_names, self._buffers, strict=True):
            binding.bind_rows(name, name.replace("past_key_values", "present"), buffer, rows)
        return binding

    def prefill(self, prompts: list[list[int]], audio: Any, budget: int, *, all_positions: bool = False) -> Floats:
        """Start ``len(prompts)`` rows in one pass, with room for ``budget`` more positions each.

        Args:
            prompts: token ids of each row.
            audio: audio of all rows, in the subclass's form.
            budget: positions to keep free for the steps that follow.
            all_positions: return logits of every prompt position instead of each row's last.

        Returns:
            Logits [rows, 1, vocab], or [rows, longest prompt, vocab]; positions past a prompt's end are meaningless.

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
        logits = np.empty((rows, longest if all_positions else 1, self.vocab_size), np.float32)
        self._binding(ids, mask, accepted, logits, slice(None)).run()
        self._set_lengths(slice(None), lengths)
        return logits

    def prefill_row(self, row: int, prompt: list[int], audio: Any) -> Floats:
        """Start one row while the others wait; return the logits [vocab] of its first token.

        Raises:
            ValueError: the audio does not fit the prompt, or the prompt is longer than the row.
        """
        self.truncate_row(row, 0)
        first: Floats = self.extend_row(row, prompt, audio)[0]
        return first

    def extend_row(self, row: int, ids: Sequence[int], audio: Any, logits_count: int = 1) -> Floats:
        """Append ``ids`` to a row in one pass while the others wait.

        Args:
            row: index of the row; :meth:`truncate_row` and :meth:`restore_row` set its contents before.
            ids: token ids.
            audio: audio of these ids in the subclass's form, or None.
            logits_count: number of last positions to return logits for.

        Returns:
            Logits [logits_count, vocab].

        Raises:
            ValueError: the audio does not fit the ids, or the row is too short.
        """
        accepted = self._accept(slice(row, row + 1), [ids], audio)
        length = int(self._lengths[row]) + len(ids)
        if length > self.layout[1]:
            raise ValueError(f"{length} positions do not fit a row of {self.layout[1]}")
        logits: Floats = np.empty((1, logits_count, self.vocab_size), np.float32)
        mask = np.ones((1, length), np.int64)
        self._binding(np.array([ids], np.int64), mask, accepted, logits, slice(row, row + 1)).run()
        self._set_lengths(slice(row, row + 1), np.array([length], np.int64))
        last: Floats = logits[0]
        return last

    def truncate_row(self, row: int, length: int) -> None:
        """Discard a row's positions after the first ``length``."""
        self._set_lengths(slice(row, row + 1), np.minimum(self._lengths[row : row + 1], length))

    def snapshot_row(self, row: int, length: int) -> RowSnapshot:
        """Copy the first ``length`` positions of a row; needs rows that are :attr:`movable`.

        Raises:
            ValueError: the row holds fewer positions.
        """
        if length > self._lengths[row]:
            raise ValueError(f"row {row} holds {self._lengths[row]} positions, not {length}")
        return RowSnapshot(length, [buffer.array[row, :, :length].copy() for buffer in self._buffers])

    def restore_row(self, row: int, snapshot: RowSnapshot, length: int) -> None:
        """Replace a row's contents with the first ``length`` positions of a snapshot."""
        for buffer, array in zip(self._buffers, snapshot.arrays, strict=True):
            buffer.array[row, :, :length] = array[:, :length]
        self._set_lengths(slice(row, row + 1), np.array([length], np.int64))

    def _set_lengths(self, rows: slice, lengths: Ids) -> None:
        self._lengths[rows] = lengths
        self._mask[rows] = np.arange(self.layout[1]) < lengths[:, None]

    @property
    def movable(self) -> bool:
        """Whether rows can be copied and moved: only those in host memory can."""
        return self._location == HOST

    def move_row(self, source: int, target: int) -> None:
        """Copy the contents of row ``source`` into row ``target``; needs rows that are :attr:`movable`."""
        length = self._lengths[source]
        for buffer in self._buffers:
            buffer.array[target, :, :length] = buffer.array[source, :, :length]
        self._set_lengths(slice(target, target + 1), self._lengths[source : source + 1])

    def step(self, tokens: Sequence[int | None]) -> Floats:
        """Append one token to each of the first ``len(tokens)`` rows; None empties an idle row.

        Returns:
            Logits [rows, vocab], valid until the next call; those of idle rows are meaningless.

        Raises:
            ValueError: a row is full.
        """
        count = len(tokens)
        lengths = self._lengths[:count]
        if not 0 < count <= self.layout[0] or int(lengths.max()) >= self.layout[1]:
            raise ValueError("no room for another position: open or prefill with a larger budget")
        for row in (row for row, token in enumerate(tokens) if token is None):
            # An idle row takes part in the step and needs a position to write to; its next prefill overwrites it.
            self._set_lengths(slice(row, row + 1), np.zeros(1, np.int64))
        self._tokens[:count, 0] = [token or 0 for token in tokens]
        self._mask[np.arange(count), lengths] = 1
        lengths += 1
        if count not in self._steps:
            no_audio = self._accept(slice(count), (), None)
            self._steps[count] = self._binding(
                self._tokens[:count], self._mask[:count], no_audio, self._logits[:count], slice(count)
            )
        self._steps[count].run()
        return self._logits[:count, 0]


class CausalDecoder(RowDecoder):
    """A decoder with audio in its prompts: rows of ``audio_embeds[N, hidden]`` replace a placeholder token.

    Audio is float32 [N, hidden], one row for each placeholder, in order of rows and positions.
    """

    def __init__(self, session: ort.InferenceSession, spec: GraphSpec, *, audio_id: int, context_length: int) -> None:
        """``audio_id``: id of the placeholder token; ``context_length``: positions that the graph supports."""
        super().__init__(session, spec, context_length=context_length)
        self._audio_id = audio_id
        audio = next(tensor for tensor in spec.inputs if tensor.name == "audio_embeds")
        self.hidden_size = int(audio.shape[-1])

    def _accept(self, rows: slice, prompts: Sequence[Sequence[int]], audio: Any) -> Floats:  # noqa: ARG002
        embeds = np.zeros((0, self.hidden_size), np.float32) if audio is None else audio
        placeholders = sum(list(prompt).count(self._audio_id) for prompt in prompts)
        if placeholders != len(embeds):
            raise ValueError(f"{len(embeds)} audio rows do not fit the prompt's {placeholders} placeholders")
        return np.ascontiguousarray(embeds, np.float32)

    def _bind_audio(self, binding: Binding, rows: slice, accepted: Floats) -> None:  # noqa: ARG002
        binding.bind_input("audio_embeds", accepted)

    def compare_passes(self) -> PassComparison:
        """Measure the equality of passes in a separate row; rows in use are not changed."""
        other = CausalDecoder(self._session, self._spec, audio_id=self._audio_id, context_length=self.context_length)
        prompt, half, text = _TEST_IDS[:_TEST_PROMPT], _TEST_PROMPT // 2, _TEST_IDS[_TEST_PROMPT:]
        ids = [token for token in (each % self.vocab_size for each in prompt) if token != self._audio_id]
        other.open_rows(1, len(_TEST_IDS))
        whole = other.prefill_row(0, ids, None)
        stepped = [other.step([token])[0].copy() for token in text]
        other.truncate_row(0, len(ids))
        steps = np.array_equal(other.extend_row(0, text, None, len(text)), stepped)
        other.prefill_row(0, ids[:half], None)
        splits = np.array_equal(other.extend_row(0, ids[half:], None)[0], whole)
        splits = splits and np.array_equal(other.extend_row(0, text, None, len(text)), stepped)
        return PassComparison(steps, splits)
