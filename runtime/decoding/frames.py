"""The result of decoding over encoder frames: tokens with their frames."""

from __future__ import annotations

import math

import msgspec

from runtime.results import FinishReason


class FrameHypothesis(msgspec.Struct, frozen=True):
    """Decoded ids without blanks; for each its first frame, the frame after its last one, and its log-probability.

    A transducer's token may take no time: both frames are equal then. ``finish_reason`` is ``stop`` at the end of the
    audio and ``length`` when the token limit was reached before.
    """

    tokens: list[int]
    starts: list[int]
    ends: list[int]
    log_probabilities: list[float]
    finish_reason: FinishReason = "stop"

    @property
    def confidence(self) -> float:
        """Geometric mean of the token probabilities, 0..1; 0 when there is no token."""
        if not self.log_probabilities:
            return 0.0
        return math.exp(math.fsum(self.log_probabilities) / len(self.log_probabilities))

    def limited_to(self, max_tokens: int | None) -> FrameHypothesis:
        """Return the first ``max_tokens`` tokens with finish reason ``length``; itself when it has no more."""
        if max_tokens is None or len(self.tokens) <= max_tokens:
            return self
        return FrameHypothesis(
            self.tokens[:max_tokens],
            self.starts[:max_tokens],
            self.ends[:max_tokens],
            self.log_probabilities[:max_tokens],
            "length",
        )
