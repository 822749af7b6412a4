"""Find texts that end long before the speech does, by their rate of tokens and the model's certainty of the end.

A model of the kind that writes token by token may stop after the first of several sentences, above all where the
language changes. Nothing in the text shows this, but the audio does.
"""

from __future__ import annotations

import math

# Tokens of text for a second of speech (``python -m benchmarks.short_texts``). Whole texts of 306 telephone
# announcements in five languages have 2.4 and more with Whisper base, Chinese sentences 2.2 and more with the bundled
# model, whose tokens are whole words. Less than FEW_TOKENS is too few in any case; less than SOME_TOKENS is where the
# model was not sure that the text had ended.
FEW_TOKENS = 1.8
SOME_TOKENS = 3.5
# Smallest lead in log-probability of the end over all other tokens together that counts as sure: p = 0.95.
SURE_MARGIN = math.log(0.95 / 0.05)
# Speech that is shorter is one or two phrases, whose rate says little.
SHORTEST_SPEECH = 3.0
# A second decoding is better when it has this many times the tokens of the first one.
MORE_TOKENS = 1.25


def stop_margin(log_probability: float) -> float:
    """Return the lead of the stop over all other tokens, ln p - ln (1 - p), given its ``log_probability``."""
    other = -math.expm1(min(log_probability, -1e-9))
    return log_probability - math.log(other)


def is_short(tokens: int, speech: float, margin: float) -> bool:
    """Return whether a text is too short for its audio.

    Args:
        tokens: tokens of text: no timestamps, no language header.
        speech: seconds of clear speech in the audio.
        margin: lead of the stop that ended the text (:func:`stop_margin`).
    """
    if speech < SHORTEST_SPEECH:
        return False
    return tokens < (FEW_TOKENS if margin >= SURE_MARGIN else SOME_TOKENS) * speech


def has_more(tokens: int, earlier: int) -> bool:
    """Return whether a second decoding with ``tokens`` found text that the ``earlier`` tokens lack."""
    return tokens >= MORE_TOKENS * max(1, earlier)
