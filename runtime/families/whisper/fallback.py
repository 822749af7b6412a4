"""Whether a decoded text is to be believed: Whisper's guards that need no second decoding at a temperature.

Sources: arXiv 2212.04356, section 4.5, and the defaults of OpenAI's ``whisper.transcribe``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# A text that compresses better than this repeats itself.
COMPRESSION_RATIO = 2.4
# Nobody spoke where the model says so with this probability, unless it is surer of its text than this on average.
NO_SPEECH = 0.6
LOG_PROBABILITY = -1.0


def compression_ratio(text: str) -> float:
    """Bytes of a text over bytes of it compressed; 0 of nothing."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def repeats(text: str) -> bool:
    """Whether a text compresses so well that it must be a loop."""
    return compression_ratio(text) > COMPRESSION_RATIO


def probability(logits: Floats, token: int) -> float:
    """Of ``token`` by ``logits`` [vocab]."""
    peak = logits.max()
    return float(np.exp(logits[token] - peak) / np.exp(logits - peak).sum())


def is_silence(no_speech: float, log_probability: float) -> bool:
    """Whether nobody spoke.

    Args:
        no_speech: probability of the no-speech token where the text begins.
        log_probability: mean of the text's tokens, the stop token included.
    """
    return no_speech > NO_SPEECH and log_probability < LOG_PROBABILITY


def likeliest_language(logits: Floats, ids: Mapping[str, int]) -> tuple[str, float]:
    """The language whose token is the most probable one, and its probability among languages.

    Args:
        logits: [vocab] of the token after the start of a transcript.
        ids: the languages' tokens by code; not empty.
    """
    codes = list(ids)
    scores = logits[[ids[code] for code in codes]]
    best = int(scores.argmax())
    return codes[best], float(1 / np.exp(scores - scores[best]).sum())
