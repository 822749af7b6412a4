"""What engines with an autoregressive decoder share: token budgets, drafts of live text, and the loop over rows."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from runtime.decoding.greedy import Hypothesis, Rows, TextJob, greedy_rows
from runtime.engines.base import BaseEngine, SegmentJob, SegmentOptions, SegmentResult

# Largest number of text tokens for a second of audio: more than fast speech in any language needs, so that only a
# runaway text is cut. The constant covers very short clips, and tokens that are no text (a language header,
# timestamps).
_TOKENS_PER_SECOND = 15
_EXTRA_TOKENS = 32


@dataclass(frozen=True, slots=True)
class PendingText:
    """A segment whose text is being decoded, with its numbers of encoder rows and prompt positions."""

    segment: SegmentJob
    audio_tokens: int
    prompt_tokens: int


P = TypeVar("P", bound=PendingText)


class AutoregressiveEngine(BaseEngine, Generic[P]):
    """An engine that encodes segments and decodes their texts token by token in rows of keys and values."""

    _decoder: Rows
    _stop_ids: Collection[int]
    _forbidden_ids: Collection[int] = ()
    _context_length: int

    @abstractmethod
    def _prepare(self, segments: list[SegmentJob]) -> Iterable[tuple[P, TextJob | SegmentResult]]:
        """Encode segments and build their prompts; lazily where encoding goes segment by segment.

        A result instead of a text to decode is that of the segment.
        """

    @abstractmethod
    def _finish(self, pending: P, hypothesis: Hypothesis) -> SegmentResult:
        """Turn a decoded text into a segment's result."""

    def _layout(self, positions: int) -> tuple[int, int]:
        """Return (rows, positions per row) to decode a text of ``positions``; by default the plan's."""
        del positions
        return self.plan.rows, self.plan.positions

    @property
    def _segments_per_encode(self) -> int:
        """Segments that are requested and encoded together, when a row is free."""
        return 1

    def run(self, next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        """Decode many segments together; see :meth:`runtime.engines.base.Engine.run` for ``next_job``."""
        ready: deque[tuple[P, TextJob]] = deque()
        undecoded: deque[tuple[Any, SegmentResult]] = deque()

        def next_text() -> tuple[P, TextJob] | None:
            while not ready:
                segments = list(islice(iter(next_job, None), self._segments_per_encode))
                if not segments:
                    return None
                for pending, work in self._prepare(segments):
                    if isinstance(work, SegmentResult):
                        undecoded.append((pending.segment.key, work))
                    else:
                        ready.append((pending, work))
            return ready.popleft()

        while True:
            for pending, hypothesis in greedy_rows(
                self._decoder,
                next_text,
                self._layout,
                self._stop_ids,
                forbidden_ids=self._forbidden_ids,
                on_timing=_add_timing,
                is_cancelled=lambda pending: pending.segment.is_cancelled(),
            ):
                yield pending.segment.key, self._finish(pending, hypothesis)
                while undecoded:
                    yield undecoded.popleft()
            if not undecoded:
                return
            while undecoded:  # jobs may follow from these results
                yield undecoded.popleft()

    def _budget(self, samples: int, options: SegmentOptions, prompt_tokens: int) -> int:
        """Return the largest number of text tokens for a segment of ``samples``, bounded by the room in a row."""
        budget = options.max_new_tokens or text_budget(samples / self.sample_rate)
        return min(budget, self._context_length - prompt_tokens)


def last_tokens(
    text: str, limit: int, encode: Callable[[str], Sequence[int]], decode: Callable[[Sequence[int]], str]
) -> tuple[str, int]:
    """Return the longest end of ``text`` that has at most ``limit`` tokens, and how many tokens it leaves out.

    Args:
        text: the text.
        limit: largest number of tokens, at least 0.
        encode: text → token ids.
        decode: token ids → text; the rest of a character that was cut may appear as U+FFFD.
    """
    ids = encode(text)
    if len(ids) <= limit:
        return text, 0
    for count in range(limit, 0, -1):
        end = decode(ids[-count:]).lstrip("\ufffd").strip()
        if len(encode(end)) <= limit:  # other tokens may stand for a text whose beginning is cut
            return end, len(ids) - count
    return "", len(ids)


def text_budget(seconds: float) -> int:
    """Return the largest number of text tokens for ``seconds`` of audio."""
    return _EXTRA_TOKENS + math.ceil(seconds * _TOKENS_PER_SECOND)


def _add_timing(stage: str, texts: Sequence[PendingText], seconds: float) -> None:
    """Divide the seconds of a stage among its texts, and note the first token after a prefill."""
    for text in texts:
        timings = text.segment.timings
        timings.add(stage, seconds / len(texts))
        if stage == "prefill" and not timings.first_token:
            timings.first_token = time.perf_counter() - text.segment.began
