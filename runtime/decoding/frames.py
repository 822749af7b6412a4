"""What decoding over an encoder's frames gives: tokens that know their place in the audio."""

from __future__ import annotations

import math

import msgspec

from runtime.results import FinishReason


class FrameHypothesis(msgspec.Struct, frozen=True):
    """Decoded ids without blanks, and of each: its first frame, the frame after its last, and its log-probability.

    A transducer may say that a token takes no time: the two frames are equal then. The text ends with the audio
    (``stop``), or because it was to have no more tokens (``length``).
    """

    tokens: list[int]
    starts: list[int]
    ends: list[int]
    log_probabilities: list[float]
    finish_reason: FinishReason = "stop"

    @property
    def confidence(self) -> float:
        """Geometric mean of the tokens' probabilities, 0..1; 0 when nothing was decoded."""
        if not self.log_probabilities:
            return 0.0
        return math.exp(math.fsum(self.log_probabilities) / len(self.log_probabilities))

    def cut(self, most: int | None) -> FrameHypothesis:
        """The hypothesis with ``most`` tokens at the most, of which the others were cut off (``length``)."""
        if most is None or len(self.tokens) <= most:
            return self
        return FrameHypothesis(
            self.tokens[:most], self.starts[:most], self.ends[:most], self.log_probabilities[:most], "length"
        )
