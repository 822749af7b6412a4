"""Decoders with rows for tests, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class PlainRows:
    """Base of decoders without drafts: their operations must not be called."""

    def extend_row(self, row: int, ids: Sequence[int], audio_embeds: Any, logits_count: int = 1) -> Any:
        raise AssertionError

    def truncate_row(self, row: int, length: int) -> None:
        raise AssertionError

    def snapshot_row(self, row: int, length: int) -> Any:
        raise AssertionError

    def restore_row(self, row: int, snapshot: Any, length: int) -> None:
        raise AssertionError


class HashedRows:
    """A decoder whose random logits depend on nothing but the tokens in the row.

    ``blur`` is the largest difference between the logits of a pass over many tokens and those of single steps.

    Attributes:
        rows: the tokens in each row.
        passes: the number of tokens of each prefill and extension.
    """

    def __init__(self, vocab: int, *, blur: float = 0.0) -> None:
        self.vocab, self.blur, self.movable = vocab, blur, True
        self.layout = (0, 0)
        self.rows: list[list[int]] = []
        self.passes: list[int] = []

    def _logits(self, row: Sequence[int], *, blurred: bool = False) -> np.ndarray:
        logits: np.ndarray = np.random.default_rng([7, *row]).standard_normal(self.vocab).astype(np.float32) * 3
        if blurred:
            logits += np.random.default_rng([8, *row]).uniform(-self.blur, self.blur, self.vocab).astype(np.float32)
        return logits

    def open_rows(self, rows: int, positions: int) -> None:
        self.layout = (rows, positions)
        self.rows = [[] for _ in range(rows)]

    def prefill_row(self, row: int, prompt: list[int], audio_embeds: np.ndarray) -> np.ndarray:
        self.rows[row] = []
        first: np.ndarray = self.extend_row(row, prompt, audio_embeds)[0]
        return first

    def extend_row(self, row: int, ids: Sequence[int], audio_embeds: np.ndarray, logits_count: int = 1) -> np.ndarray:
        before = len(self.rows[row])
        self.passes.append(len(ids))
        self.rows[row] += ids
        assert len(self.rows[row]) <= self.layout[1]
        ends = range(len(self.rows[row]) - logits_count + 1, len(self.rows[row]) + 1)
        assert ends[0] > before
        logits: np.ndarray = np.stack([self._logits(self.rows[row][:end], blurred=before > 0) for end in ends])
        return logits

    def truncate_row(self, row: int, length: int) -> None:
        del self.rows[row][length:]

    def snapshot_row(self, row: int, length: int) -> list[int]:
        assert length <= len(self.rows[row])
        return self.rows[row][:length]

    def restore_row(self, row: int, snapshot: list[int], length: int) -> None:
        assert length <= len(snapshot)
        self.rows[row] = snapshot[:length]

    def move_row(self, source: int, target: int) -> None:
        self.rows[target] = list(self.rows[source])

    def step(self, tokens: Sequence[int | None]) -> np.ndarray:
        for row, token in enumerate(tokens):
            self.rows[row] = [] if token is None else [*self.rows[row], token]
        logits: np.ndarray = np.stack([self._logits(self.rows[row]) for row in range(len(tokens))])
        return logits
