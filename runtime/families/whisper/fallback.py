"""Whisper's guards that need no second decoding: silence, repeated text, language detection.

Sources: arXiv 2212.04356, section 4.5, and the defaults of OpenAI's ``whisper.transcribe``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# A text with a higher compression ratio repeats itself.
COMPRESSION_RATIO = 2.4
# Treat as silence when the no-speech probability is above this and the mean log-probability below that.
NO_SPEECH = 0.6
LOG_PROBABILITY = -1.0
# With less expected speech than this a high no-speech probability is enough: for a short sound the model is often sure
# of a text, such as "Thank you.". Of the texts that the rule above keeps, those of sounds and of 0.1 s of speech have
# up to 0.12 s. 95 % of stretches of 0.3 s of speech have more than 0.2 s (docs/howto/whisper.md).
SHORT_SPEECH_SECONDS = 0.15


def compression_ratio(text: str) -> float:
    """Return a text's UTF-8 size divided by its zlib-compressed size; 0 for an empty text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def repeats(text: str) -> bool:
    """Return whether a text compresses so well that it must be a loop."""
    return compression_ratio(text) > COMPRESSION_RATIO


def probability(logits: Floats, token: int) -> float:
    """Return the softmax probability of ``token`` in ``logits`` [vocab]."""
    peak = logits.max()
    return float(np.exp(logits[token] - peak) / np.exp(logits - peak).sum())


def is_silence(no_speech: float, log_probability: float, speech: float | None = None) -> bool:
    """Return whether a segment has no speech.

    Args:
        no_speech: probability of the no-speech token at the start of the text, 0..1.
        log_probability: mean log-probability of the text's tokens, the stop token included.
        speech: expected seconds of speech by voice activity; None if it is not known.
    """
    if no_speech <= NO_SPEECH:
        return False
    return log_probability < LOG_PROBABILITY or (speech is not None and speech < SHORT_SPEECH_SECONDS)


def language_probability(logits: Floats, ids: Mapping[str, int], code: str) -> float:
    """Return the probability of a language among all languages.

    Args:
        logits: [vocab] of the token after the start of a transcript.
        ids: token ids by language code.
        code: a key of ``ids``.
    """
    scores = logits[list(ids.values())]
    return float(1 / np.exp(scores - logits[ids[code]]).sum())


def likeliest_language(logits: Floats, ids: Mapping[str, int]) -> tuple[str, float]:
    """Return the code of the most probable language and its probability among all languages.

    Args:
        logits: [vocab] of the token after the start of a transcript.
        ids: token ids by language code; not empty.
    """
    codes = list(ids)
    scores = logits[[ids[code] for code in codes]]
    best = int(scores.argmax())
    return codes[best], float(1 / np.exp(scores - scores[best]).sum())
