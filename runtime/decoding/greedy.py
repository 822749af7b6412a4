"""Greedy decoding of many texts in rows, with token budgets, verified drafts and a loop guard."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.decoding.loops import loop_period, loop_start, penalize
from runtime.decoding.probabilities import log_softmax_at
from runtime.results import FinishReason

Floats = npt.NDArray[np.float32]


class Hypothesis(msgspec.Struct, frozen=True):
    """Decoded token ids without the stop id, and why the text ended.

    ``log_probabilities`` belong to the ids that the model chose, the stop id included; forced ids have none.
    ``snapshot`` is the copy of the row's first positions that a draft requested.
    """

    tokens: list[int]
    log_probabilities: list[float]
    finish_reason: FinishReason
    snapshot: Any = None

    @property
    def confidence(self) -> float:
        """Geometric mean of the token probabilities, 0..1; 0 when the model chose no token."""
        if not self.log_probabilities:
            return 0.0
        return float(np.exp(np.mean(self.log_probabilities)))

    @property
    def stop_log_probability(self) -> float | None:
        """Log-probability of the stop id that ended the text; None when none did."""
        ended = self.finish_reason == "stop" and self.log_probabilities
        return self.log_probabilities[-1] if ended else None


class Draft(msgspec.Struct, frozen=True):
    """An expected text to verify in one pass, and earlier results to reuse.

    ``tokens`` are kept as far as the model would have chosen them. The first ``forced`` of them are kept in any case.

    The first ``reuse`` prompt positions, ``reuse_audio`` of them audio rows, come from ``snapshot``. A copy of the
    row's first ``snapshot_length`` positions is returned with the hypothesis.

    ``exact`` verifies in a pass of its own after the prompt's pass, which computes what decoding without a draft
    computes, bit for bit where ``min_margin`` is 0. Where passes over many tokens and single steps differ in their last
    digits, a choice that leads the second best by less than ``min_margin`` (in logits) restarts the text without the
    draft.
    """

    tokens: list[int]
    forced: int = 0
    snapshot: Any = None
    reuse: int = 0
    reuse_audio: int = 0
    snapshot_length: int = 0
    exact: bool = False
    min_margin: float = 0.0


class TextJob(msgspec.Struct, frozen=True):
    """A text to decode: prompt ids, audio in the decoder's form, and the largest number of tokens.

    ``ignore_stop`` decodes exactly ``budget`` tokens. ``repetition_penalty`` above 1 makes tokens that the text already
    has less likely (:func:`runtime.decoding.loops.penalize`). ``rules`` change the logits [vocab] of the next token in
    place, given the tokens so far; entries set to -inf are never chosen.
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
        """Row positions that prompt and text need."""
        return len(self.prompt) + self.budget


class Rows(Protocol):
    """A decoder with independent rows; :class:`runtime.decoding.kv_rows.RowDecoder` implements it."""

    @property
    def layout(self) -> tuple[int, int]:
        """(rows, positions per row) that are open."""

    def open_rows(self, rows: int, positions: int) -> None: ...

    @property
    def movable(self) -> bool:
        """Whether rows can be moved; otherwise gaps between active rows are stepped too."""

    def prefill_row(self, row: int, prompt: list[int], audio: Any, /) -> Floats: ...

    def extend_row(self, row: int, ids: Sequence[int], audio: Any, /, logits_count: int = 1) -> Floats: ...

    def truncate_row(self, row: int, length: int) -> None: ...

    def snapshot_row(self, row: int, length: int) -> Any: ...

    def restore_row(self, row: int, snapshot: Any, length: int) -> None: ...

    def move_row(self, source: int, target: int) -> None: ...

    def step(self, tokens: Sequence[int | None]) -> Floats: ...


class _Text:
    """One growing text: the most probable token each time, until a stop id, the budget, or a loop.

    Only the first period of a loop is kept.
    """

    def __init__(self, key: Any, job: TextJob, stop_ids: Collection[int]) -> None:
        self.key, self.job, self._stop_ids = key, job, stop_ids
        self.snapshot: Any = None
        self.restart_logits: Floats | None = None
        """Logits [vocab] of the first token, kept while the draft may still have to be discarded."""
        self.clear()

    def clear(self) -> None:
        """Remove all tokens."""
        self._tokens: list[int] = []
        self._log_probabilities: list[float | None] = []  # None for a forced token
        self._reason: FinishReason = "length"

    @property
    def last(self) -> int:
        """The token that the next step appends to the row."""
        return self._tokens[-1]

    def release_audio(self) -> None:
        """Drop the audio once the decoder has it: it can be as large as the rest of a row."""
        self.job = msgspec.structs.replace(self.job, audio=None)

    def apply_rules(self, logits: Floats) -> None:
        """Change ``logits`` [vocab] of the next token in place by the job's rules."""
        if self.job.rules:
            self.job.rules(logits, self._tokens)

    def choose(self, logits: Floats, best: int) -> int:
        """Return the next token, given ``logits`` [vocab] and the most probable id."""
        if self.job.repetition_penalty == 1.0 or not self._tokens:
            return best
        return int(np.argmax(penalize(logits, self._tokens, self.job.repetition_penalty)))

    def append(self, token: int, log_probability: float | None) -> bool:
        """Append ``token`` (``log_probability`` None: forced); return False when the text has ended."""
        self._log_probabilities.append(log_probability)
        if token in self._stop_ids and not self.job.ignore_stop:
            self._reason = "stop"
            return False
        self._tokens.append(token)
        if not self.job.ignore_stop and (period := loop_period(self._tokens)):
            length = loop_start(self._tokens, period) + period
            del self._tokens[length:], self._log_probabilities[length:]
            self._reason = "repetition"
            return False
        return len(self._tokens) < self.job.budget

    def hypothesis(self) -> Hypothesis:
        """Return the decoded text."""
        chosen = [each for each in self._log_probabilities if each is not None]
        return Hypothesis(self._tokens, chosen, self._reason, self.snapshot)

    def is_near_tie(self, logits: Floats, token: int) -> bool:
        """Return whether single steps might have chosen another token than ``token`` from ``logits`` [vocab]."""
        if self.restart_logits is None or self.job.draft is None:
            return False
        return bool((logits > logits[token] - self.job.draft.min_margin).sum() > 1)


def greedy_rows(
    decoder: Rows,
    next_job: Callable[[], tuple[Any, TextJob] | None],
    layout: Callable[[int], tuple[int, int]],
    stop_ids: Collection[int],
    *,
    forbidden_ids: Collection[int] = (),
    on_timing: Callable[[str, Sequence[Any], float], None] = lambda *_: None,
    is_cancelled: Callable[[Any], bool] = lambda _: False,
) -> Iterator[tuple[Any, Hypothesis]]:
    """Decode many texts together; a row whose text has ended starts the next one at once.

    The active rows are always the first ones, so a step costs as much as there are active rows: when no job is left,
    the last row moves into the gap of an ended one.

    Args:
        decoder: opened with the layout that the jobs need.
        next_job: called whenever a row is free; returns a key and a job, or None when there is none now. It may have
            more jobs after texts have ended; decoding ends when all rows are free and it returns None.
        layout: positions that a job needs → (rows, positions per row). A job that needs another layout than the open
            one waits until all rows have ended.
        stop_ids: ids that end a text.
        forbidden_ids: ids that no text may contain, such as audio placeholders.
        on_timing: called with ``prefill`` or ``decode``, the keys of the texts concerned, and seconds.
        is_cancelled: called with a key before each pass; True drops the text and frees its row.

    Yields:
        Each job's key and hypothesis, in the order in which the texts end.
    """
    forbidden = list(forbidden_ids)
    texts: list[_Text | None] = []
    waiting: tuple[Any, TextJob] | None = None
    while True:
        while None in texts or len(texts) < decoder.layout[0] or not texts:
            waiting = waiting or next_job()
            if waiting is None:
                break
            needed = layout(waiting[1].positions)
            if needed != decoder.layout:
                if any(texts):
                    break
                decoder.open_rows(*needed)
            (key, job), waiting = waiting, None
            if is_cancelled(key):
                continue
            row = texts.index(None) if None in texts else len(texts)
            text = _Text(key, job, stop_ids)
            del job
            start = time.perf_counter()
            continues = _begin(decoder, row, text, forbidden)
            text.release_audio()
            on_timing("prefill", [key], time.perf_counter() - start)
            if not continues:
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
        start = time.perf_counter()
        logits = decoder.step([text.last if text else None for text in texts])
        if len(active) < len(texts):
            logits = logits[[row for row, _ in active]]
        ended = []
        choices = _choose([text for _, text in active], logits, forbidden)
        for (row, text), row_logits, (token, log_probability) in zip(active, logits, choices, strict=True):
            if text.is_near_tie(row_logits, token):
                continues = _restart(decoder, row, text, forbidden)
            else:
                continues = text.append(token, log_probability)
            if not continues:
                ended.append((row, text))
        on_timing("decode", [text.key for _, text in active], time.perf_counter() - start)
        for row, text in ended:
            texts[row] = None
            yield text.key, text.hypothesis()


def _choose(texts: Sequence[_Text], logits: Floats, forbidden: list[int]) -> list[tuple[int, float]]:
    """Apply the rules to ``logits`` [rows, vocab] in place; return each text's next token and its log-probability."""
    logits[:, forbidden] = -np.inf
    for text, row_logits in zip(texts, logits, strict=True):
        text.apply_rules(row_logits)
    best = logits.argmax(axis=1)
    tokens = [text.choose(logits[row], int(best[row])) for row, text in enumerate(texts)]
    log_probabilities = log_softmax_at(logits, best, np.array(tokens))
    return list(zip(tokens, map(float, log_probabilities), strict=True))


def _begin(decoder: Rows, row: int, text: _Text, forbidden: list[int]) -> bool:
    """Decode the prompt and the part of the draft that holds; return False when the text has ended with it."""
    job, draft = text.job, text.job.draft
    if draft is None:
        logits = decoder.prefill_row(row, job.prompt, job.audio)[None]
        return text.append(*_choose([text], logits, forbidden)[0])
    if draft.reuse:
        decoder.restore_row(row, draft.snapshot, draft.reuse)
    else:
        decoder.truncate_row(row, 0)
    rest, tokens = job.prompt[draft.reuse :], draft.tokens[: job.budget]
    audio = job.audio[draft.reuse_audio :] if draft.reuse_audio else job.audio
    forced = min(draft.forced, len(tokens))
    if draft.exact and tokens:
        first = decoder.extend_row(row, rest, audio)
        logits = np.concatenate([first, decoder.extend_row(row, tokens, None, len(tokens))])[forced:]
    else:
        logits = decoder.extend_row(row, [*rest, *tokens], audio, len(tokens) - forced + 1)
    if draft.snapshot_length:
        text.snapshot = decoder.snapshot_row(row, draft.snapshot_length)
    if draft.exact and draft.min_margin:
        text.restart_logits = logits[0].copy()
    return _verify(decoder, row, text, logits, forbidden)


def _verify(decoder: Rows, row: int, text: _Text, logits: Floats, forbidden: list[int]) -> bool:
    """Append draft tokens as far as ``logits`` [draft tokens - forced + 1, vocab] choose them, and one more token."""
    draft = text.job.draft
    assert draft
    tokens = draft.tokens[: text.job.budget]
    forced = len(tokens) + 1 - len(logits)
    for token in tokens[:forced]:
        if not text.append(token, None):
            return False
    accepted = forced
    for row_logits in logits:
        token, log_probability = _choose([text], row_logits[None], forbidden)[0]  # the rules see the tokens so far
        if text.is_near_tie(row_logits, token):
            return _restart(decoder, row, text, forbidden)
        if not text.append(token, log_probability):
            return False
        if accepted == len(tokens) or token != tokens[accepted]:
            break
        accepted += 1
    decoder.truncate_row(row, len(text.job.prompt) + accepted)
    return True


def _restart(decoder: Rows, row: int, text: _Text, forbidden: list[int]) -> bool:
    """Discard the draft and continue from the prompt's end by single steps; return False when the text has ended."""
    assert text.restart_logits is not None
    decoder.truncate_row(row, len(text.job.prompt))
    first, text.restart_logits = text.restart_logits[None], None
    text.clear()
    return text.append(*_choose([text], first, forbidden)[0])


def _close_gaps(decoder: Rows, texts: list[_Text | None]) -> None:
    """Move the last texts into the rows of ended ones, so that the active rows are the first."""
    while texts and texts[-1] is None:
        texts.pop()
    while decoder.movable and None in texts:
        gap = texts.index(None)
        decoder.move_row(len(texts) - 1, gap)
        texts[gap] = texts.pop()
        while texts and texts[-1] is None:
            texts.pop()
