"""Greedy decoding of many texts in rows, with a budget and a guard against loops."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.results import FinishReason

Floats = npt.NDArray[np.float32]

# Penalty for texts that are decoded again because they were cut off or looped: enough to leave a loop, and a last
# resort only, because it also makes rightly repeated words less likely.
REPETITION_PENALTY = 1.1

# A tail that repeats one period is a loop when it is this long (tokens) and repeats this often. Digits and refrains
# repeat too, but not so long: the official implementation collapses runs of more than 20.
_LOOP_TOKENS = 24
_LOOP_REPEATS = 6
_LONGEST_PERIOD = 24


class Hypothesis(msgspec.Struct, frozen=True):
    """Decoded ids without the stop id, and why the text ended.

    ``log_probabilities`` are those of each id that the model chose, a stop id that came included. ``kept`` is the copy
    of the row's beginning that a draft asked for.
    """

    tokens: list[int]
    log_probabilities: list[float]
    finish_reason: FinishReason
    kept: Any = None

    @property
    def confidence(self) -> float:
        """Geometric mean of the probabilities, 0..1; 0 when nothing was decoded."""
        if not self.log_probabilities:
            return 0.0
        return float(np.exp(np.mean(self.log_probabilities)))


class Draft(msgspec.Struct, frozen=True):
    """What a text is expected to say, and what was computed of it before.

    ``tokens`` are verified in one pass, and kept as far as the model would have chosen them. The first ``forced`` of
    them are taken whatever it would have chosen.

    The prompt's first ``reuse`` positions, ``reuse_audio`` of them audio, are those of ``kept``; of the row's first
    ``keep`` positions a copy is made.

    ``exact`` verifies in a pass of its own, after the prompt's: it computes what decoding without a draft does, bit for
    bit where ``sure`` is 0. Where passes over many tokens and steps differ in their last digits, a choice that leads
    the next best by less than ``sure`` (in logits) makes the text start over without the draft.
    """

    tokens: list[int]
    forced: int = 0
    kept: Any = None
    reuse: int = 0
    reuse_audio: int = 0
    keep: int = 0
    exact: bool = False
    sure: float = 0.0


class Job(msgspec.Struct, frozen=True):
    """A text to decode: prompt ids, its audio as the decoder takes it, and the most tokens it may have.

    ``ignore_stop`` decodes exactly the budget. A ``repetition_penalty`` above 1 makes tokens that the text already has
    less likely (see :func:`penalize`). ``rules`` change the logits [vocab] of the next token in place, given the text
    so far: what they set to -inf is not chosen.
    """

    prompt: list[int]
    audio: Any
    budget: int
    ignore_stop: bool = False
    repetition_penalty: float = 1.0
    draft: Draft | None = None
    rules: Callable[[Floats, Sequence[int]], object] | None = None

    @property
    def positions(self) -> int:
        """Positions of a row that prompt and text need."""
        return len(self.prompt) + self.budget


class Rows(Protocol):
    """A decoder whose rows begin and end independently of one another: see :class:`runtime.decoding.kv_rows.CausalDecoder`."""

    @property
    def layout(self) -> tuple[int, int]:
        """(rows, positions of each) that are open."""

    def open_rows(self, rows: int, positions: int) -> None: ...

    @property
    def movable(self) -> bool:
        """Whether rows can be moved; if not, gaps between them are stepped too."""

    def prefill_row(self, row: int, prompt: list[int], audio: Any, /) -> Floats: ...

    def extend_row(self, row: int, ids: Sequence[int], audio: Any, /, keep: int = 1) -> Floats: ...

    def cut_row(self, row: int, length: int) -> None: ...

    def keep_row(self, row: int, length: int) -> Any: ...

    def restore_row(self, row: int, kept: Any, length: int) -> None: ...

    def move_row(self, source: int, target: int) -> None: ...

    def step(self, tokens: Sequence[int | None]) -> Floats: ...


class _Text:
    """One text as it grows: the most probable token each time, until a stop id, the budget, or a loop.

    Of a loop only the first period is kept.
    """

    def __init__(self, key: Any, job: Job, stop_ids: Collection[int]) -> None:
        self.key, self.job, self._stop_ids = key, job, stop_ids
        self.kept: Any = None
        self.first: Floats | None = None
        """Logits [vocab] to start over with, while the choices are not known to be those of steps alone."""
        self.clear()

    def clear(self) -> None:
        """Let it be empty."""
        self._tokens: list[int] = []
        self._log_probabilities: list[float | None] = []  # None for a forced one
        self._reason: FinishReason = "length"

    @property
    def last(self) -> int:
        """The token that the next step appends."""
        return self._tokens[-1]

    def forget_audio(self) -> None:
        """Let go of the audio, now that the decoder has it: it can be as large as all else of a row."""
        self.job = msgspec.structs.replace(self.job, audio=None)

    def rule(self, logits: Floats) -> None:
        """Change ``logits`` [vocab] of the next token as the job's rules say."""
        if self.job.rules:
            self.job.rules(logits, self._tokens)

    def choose(self, logits: Floats, best: int) -> int:
        """The next token, given ``logits`` [vocab] and the most probable one."""
        if self.job.repetition_penalty == 1.0 or not self._tokens:
            return best
        return int(np.argmax(penalize(logits, self._tokens, self.job.repetition_penalty)))

    def take(self, token: int, log_probability: float | None) -> bool:
        """Append ``token``, without a probability if it was forced; False when the text has ended."""
        self._log_probabilities.append(log_probability)
        if token in self._stop_ids and not self.job.ignore_stop:
            self._reason = "stop"
            return False
        self._tokens.append(token)
        if not self.job.ignore_stop and (period := loop_period(self._tokens)):
            keep = loop_start(self._tokens, period) + period
            del self._tokens[keep:], self._log_probabilities[keep:]
            self._reason = "repetition"
            return False
        return len(self._tokens) < self.job.budget

    def hypothesis(self) -> Hypothesis:
        """What was decoded."""
        chosen = [each for each in self._log_probabilities if each is not None]
        return Hypothesis(self._tokens, chosen, self._reason, self.kept)

    def unsure(self, logits: Floats, token: int) -> bool:
        """Whether steps alone might have chosen another than ``token`` from ``logits`` [vocab]."""
        if self.first is None or self.job.draft is None:
            return False
        lead = logits[token]
        return bool((logits > lead - self.job.draft.sure).sum() > 1)


def greedy_rows(
    decoder: Rows,
    next_job: Callable[[], tuple[Any, Job] | None],
    layout: Callable[[int], tuple[int, int]],
    stop_ids: Collection[int],
    *,
    never: Collection[int] = (),
    on_timing: Callable[[str, Sequence[Any], float], None] = lambda *_: None,
    is_cancelled: Callable[[Any], bool] = lambda _: False,
) -> Iterator[tuple[Any, Hypothesis]]:
    """Decode many texts together; a row whose text has ended begins the next one at once.

    Rows in use are always the first ones, so that a step costs what these cost: when nothing is left to begin, the last
    row moves into the place of one that has ended.

    Args:
        decoder: its rows are opened here.
        next_job: asked whenever a row is free: a key and a job, or None when there is none now. It may have one again
            after texts have ended; decoding is over when all rows are free and there is none.
        layout: positions that a job needs → (rows, positions of each) to decode it with. A job that needs another
            layout than the open one begins when all rows have ended, and is the first of the new one.
        stop_ids: ids that end a text.
        never: ids that no text may contain, such as placeholders that the decoder would take for something else.
        alive: asked of a key before each pass over its text; when it says no, the text is dropped and its row is free.
        on_timing: told ``prefill`` or ``decode``, the keys of the texts that it was for, and seconds.

    Yields:
        The key of a job and its hypothesis, in the order in which texts end.
    """
    forbidden = list(never)
    texts: list[_Text | None] = []
    waiting: tuple[Any, Job] | None = None
    while True:
        while None in texts or len(texts) < decoder.layout[0] or not texts:
            waiting = waiting or next_job()
            if waiting is None:
                break
            wanted = layout(waiting[1].positions)
            if wanted != decoder.layout:
                if any(texts):
                    break
                decoder.open_rows(*wanted)
            (key, job), waiting = waiting, None
            if is_cancelled(key):
                continue
            row = texts.index(None) if None in texts else len(texts)
            text = _Text(key, job, stop_ids)
            del job
            began = time.perf_counter()
            going = _begin(decoder, row, text, forbidden)
            text.forget_audio()
            on_timing("prefill", [key], time.perf_counter() - began)
            if not going:
                yield key, text.hypothesis()
            elif row < len(texts):
                texts[row] = text
            else:
                texts.append(text)
        texts = [None if text is None or is_cancelled(text.key) else text for text in texts]
        _close_gaps(decoder, texts)
        if not texts:
            if waiting is None:
                return
            continue
        active = [(row, text) for row, text in enumerate(texts) if text]
        began = time.perf_counter()
        logits = decoder.step([text.last if text else None for text in texts])
        if len(active) < len(texts):
            logits = logits[[row for row, _ in active]]
        ended = []
        choices = _choices([text for _, text in active], logits, forbidden)
        for (row, text), line, (token, log_probability) in zip(active, logits, choices, strict=True):
            unsure = text.unsure(line, token)
            if not (_start_over(decoder, row, text, forbidden) if unsure else text.take(token, log_probability)):
                ended.append((row, text))
        on_timing("decode", [text.key for _, text in active], time.perf_counter() - began)
        for row, text in ended:
            texts[row] = None
            yield text.key, text.hypothesis()


def _choices(texts: Sequence[_Text], logits: Floats, forbidden: list[int]) -> list[tuple[int, float]]:
    """The next token of each text by its row of ``logits`` [rows, vocab], which change, and its log-probability."""
    logits[:, forbidden] = -np.inf
    for text, line in zip(texts, logits, strict=True):
        text.rule(line)
    best = logits.argmax(axis=1)
    peaks = logits[np.arange(len(texts)), best]
    totals = np.log(np.exp(logits - peaks[:, None]).sum(axis=1))
    choices = []
    for row, text in enumerate(texts):
        token = text.choose(logits[row], int(best[row]))
        choices.append((token, float(logits[row, token] - peaks[row] - totals[row])))
    return choices


def _begin(decoder: Rows, row: int, text: _Text, forbidden: list[int]) -> bool:
    """Decode the prompt, and as much of a draft as holds; False when the text has ended with it."""
    job, draft = text.job, text.job.draft
    if draft is None:
        logits = decoder.prefill_row(row, job.prompt, job.audio)[None]
        return text.take(*_choices([text], logits, forbidden)[0])
    if draft.reuse:
        decoder.restore_row(row, draft.kept, draft.reuse)
    else:
        decoder.cut_row(row, 0)
    rest, tokens = job.prompt[draft.reuse :], draft.tokens[: job.budget]
    audio = job.audio[draft.reuse_audio :] if draft.reuse_audio else job.audio
    forced = min(draft.forced, len(tokens))
    if draft.exact and tokens:
        first = decoder.extend_row(row, rest, audio)
        logits = np.concatenate([first, decoder.extend_row(row, tokens, None, len(tokens))])[forced:]
    else:
        logits = decoder.extend_row(row, [*rest, *tokens], audio, len(tokens) - forced + 1)
    if draft.keep:
        text.kept = decoder.keep_row(row, draft.keep)
    if draft.exact and draft.sure:
        text.first = logits[0].copy()
    return _verify(decoder, row, text, logits, forbidden)


def _verify(decoder: Rows, row: int, text: _Text, logits: Floats, forbidden: list[int]) -> bool:
    """Take the draft's tokens as far as they are the choices of ``logits`` [not forced + 1, vocab], and one more."""
    draft = text.job.draft
    assert draft
    tokens = draft.tokens[: text.job.budget]
    forced = len(tokens) + 1 - len(logits)
    for token in tokens[:forced]:
        if not text.take(token, None):
            return False
    taken = forced
    for line in logits:
        token, log_probability = _choices([text], line[None], forbidden)[0]  # by rules that look at the text so far
        if text.unsure(line, token):
            return _start_over(decoder, row, text, forbidden)
        if not text.take(token, log_probability):
            return False
        if taken == len(tokens) or token != tokens[taken]:
            break
        taken += 1
    decoder.cut_row(row, len(text.job.prompt) + taken)
    return True


def _start_over(decoder: Rows, row: int, text: _Text, forbidden: list[int]) -> bool:
    """Go back to the end of the prompt, and on by steps alone; False when the text has ended."""
    assert text.first is not None
    decoder.cut_row(row, len(text.job.prompt))
    first, text.first = text.first[None], None
    text.clear()
    return text.take(*_choices([text], first, forbidden)[0])


def _close_gaps(decoder: Rows, texts: list[_Text | None]) -> None:
    """Let the texts be in the first rows: the last ones move into the places of those that have ended."""
    while texts and texts[-1] is None:
        texts.pop()
    while decoder.movable and None in texts:
        gap = texts.index(None)
        decoder.move_row(len(texts) - 1, gap)
        texts[gap] = texts.pop()
        while texts and texts[-1] is None:
            texts.pop()


def penalize(logits: Floats, tokens: Collection[int], penalty: float) -> Floats:
    """``logits`` [vocab] with those of ``tokens`` made less likely: divided by ``penalty`` where positive, else
    multiplied (Keskar et al., CTRL, arXiv 1909.05858, section 4.1).
    """
    penalized = logits.copy()
    ids = np.fromiter(set(tokens), np.int64)
    seen = penalized[ids]
    penalized[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
    return penalized


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
