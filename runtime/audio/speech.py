"""Measure how much of a segment is clear speech."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.audio.vad import FRAME_SAMPLES, SAMPLE_RATE, SpeechDetector

Floats = npt.NDArray[np.float32]

# The default of Silero's own tools: above it a frame is clearly speech.
_CLEAR = 0.5


def clear_speech(samples: Floats, start: int = 0, stop: int | None = None) -> float:
    """Return the seconds of clear speech in mono float32 ``samples`` [n] at 16 kHz.

    Args:
        samples: the samples; the detector hears all of them up to ``stop``.
        start: first sample that counts.
        stop: first sample behind those that count; None: the end.
    """
    detector = SpeechDetector()
    scores = np.concatenate([detector.probabilities(samples[:stop]), detector.finish()])
    return float(np.count_nonzero(scores[-(-start // FRAME_SAMPLES) :] >= _CLEAR)) * FRAME_SAMPLES / SAMPLE_RATE
