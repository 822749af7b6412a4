"""Greedy decoding of many texts in rows, with a budget and a guard against loops."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
FinishReason = Literal["stop", "length", "repetition"]

# A tail that repeats one period is a loop when it is this long (tokens) and repeats this often. Digits and refrains
# repeat too, but not so long: the official implementation collapses runs of more than 20.
_LOOP_TOKENS = 24
_LOOP_REPEATS = 6
_LONGEST_PERIOD = 24


class Hypothesis(msgspec.Struct, frozen=True):
    """Decoded ids without the stop id, the log-probability of each (and of a stop id that came), and why it ended."""

    tokens: list[int]
    log_probabilities: list[float]
    finish_reason: FinishReason

    @property
    def confidence(self) -> float:
        """Geometric mean of the probabilities, 0..1; 0 when nothing was decoded."""
        if not self.log_probabilities:
            return 0.0
        return float(np.exp(np.mean(self.log_probabilities)))


class _Text:
    """One text as it grows: the most probable token each time, until a stop id, the budget, or a loop.

    Of a loop only the first period is kept.
    """

    def __init__(self, stop_ids: Collection[int], budget: int, *, ignore_stop: bool) -> None:
        self._stop_ids, self._budget, self._ignore_stop = stop_ids, budget, ignore_stop
        self._tokens: list[int] = []
        self._log_probabilities: list[float] = []
        self._reason: FinishReason = "length"

    def take(self, logits: Floats) -> int | None:
        """Append the most probable token of ``logits`` [vocab] and return it; None when the text ends."""
        token = int(np.argmax(logits))
        self._log_probabilities.append(log_probability(logits, token))
        if token in self._stop_ids and not self._ignore_stop:
            self._reason = "stop"
            return None
        self._tokens.append(token)
        if not self._ignore_stop and (period := loop_period(self._tokens)):
            keep = loop_start(self._tokens, period) + period
            del self._tokens[keep:], self._log_probabilities[keep:]
            self._reason = "repetition"
            return None
        return token if len(self._tokens) < self._budget else None

    def hypothesis(self) -> Hypothesis:
        """What was decoded."""
        return Hypothesis(self._tokens, self._log_probabilities, self._reason)


class Job(msgspec.Struct, frozen=True):
    """A text to decode: prompt ids, its audio rows [N, hidden], and the most tokens it may have."""

    prompt: list[int]
    audio: Floats
    budget: int


class Rows(Protocol):
    """A decoder whose rows begin and end independently of one another: see :class:`runtime.decoder.CausalDecoder`."""

    def open_rows(self, rows: int, positions: int) -> None: ...

    def prefill_row(self, row: int, prompt: list[int], audio_embeds: Floats) -> Floats: ...

    def step_rows(self, tokens: dict[int, int]) -> Floats: ...


def greedy_rows(
    decoder: Rows,
    jobs: Iterable[Job],
    rows: int,
    positions: int,
    stop_ids: Collection[int],
    *,
    never: Collection[int] = (),
    ignore_stop: bool = False,
    measure: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Iterator[tuple[int, Hypothesis]]:
    """Decode many texts, ``rows`` at a time; a row whose text has ended begins the next one at once.

    Args:
        decoder: its rows are opened here.
        jobs: taken one by one, when a row is free; so what makes them can be lazy.
        rows: most texts at a time. A step costs two to three times as much for eight rows as for one.
        positions: room of each row, for prompt and text.
        stop_ids: ids that end a text.
        never: ids that no text may contain, such as placeholders that the decoder would take for something else.
        ignore_stop: decode exactly each job's budget.
        measure: called with ``prefill`` and ``decode`` around what takes time.

    Yields:
        The place of a job in ``jobs`` and its hypothesis, in the order in which texts end.
    """
    decoder.open_rows(rows, positions)
    waiting, forbidden = enumerate(jobs), list(never)
    free = list(reversed(range(rows)))
    texts: dict[int, tuple[int, _Text]] = {}
    tokens: dict[int, int] = {}
    while True:
        while free and (following := next(waiting, None)):
            place, job = following
            text = _Text(stop_ids, job.budget, ignore_stop=ignore_stop)
            with measure("prefill"):
                first = decoder.prefill_row(free[-1], job.prompt, job.audio)
            first[forbidden] = -np.inf
            token = text.take(first)
            if token is None:
                yield place, text.hypothesis()
                continue
            row = free.pop()
            texts[row], tokens[row] = (place, text), token
        if not tokens:
            return
        with measure("decode"):
            logits = decoder.step_rows(tokens)
            logits[:, forbidden] = -np.inf
            ended = []
            for row in list(tokens):
                token = texts[row][1].take(logits[row])
                if token is None:
                    ended.append(row)
                else:
                    tokens[row] = token
        for row in ended:
            del tokens[row]
            free.append(row)
            place, text = texts.pop(row)
            yield place, text.hypothesis()


def log_probability(logits: Floats, token: int) -> float:
    """Natural logarithm of ``token``'s probability under softmax of ``logits`` [vocab]."""
    peak = logits.max()
    return float(logits[token] - peak - np.log(np.exp(logits - peak).sum()))


def loop_period(tokens: Sequence[int]) -> int:
    """The period in which the tail of ``tokens`` loops, or 0. Shorter periods win."""
    for period in range(1, _LONGEST_PERIOD + 1):
        span = max(_LOOP_TOKENS, period * _LOOP_REPEATS)
        if len(tokens) < span:
            break
        tail = tokens[-span:]
        if tail[period:] == tail[:-period]:
            return period
    return 0


def loop_start(tokens: Sequence[int], period: int) -> int:
    """Where the loop at the end of ``tokens`` begins: the first index from which everything repeats by ``period``."""
    start = len(tokens) - period
    while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
        start -= 1
    return start
