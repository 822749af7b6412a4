"""Cutting long audio at quiet places, and joining the texts again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Loudness is measured over 20 ms and judged over 300 ms: a pause between words, not a closed consonant.
_FRAME_SECONDS = 0.02
_PAUSE_FRAMES = 15


def cut_points(samples: Floats, rate: int, longest: float) -> list[tuple[int, int]]:
    """Spans [start, end) of at most ``longest`` seconds that cover ``samples`` completely.

    A span ends in the middle of the quietest 300 ms in its second half. Audio of ``longest`` seconds or less is one
    span.
    """
    limit = int(longest * rate)
    frame = int(_FRAME_SECONDS * rate)
    spans, start = [], 0
    while len(samples) - start > limit:
        first = start + limit // 2
        energy = np.square(samples[first : start + limit], dtype=np.float64)
        frames = energy[: len(energy) // frame * frame].reshape(-1, frame).sum(axis=1)
        width = min(_PAUSE_FRAMES, len(frames))
        loudness = np.convolve(frames, np.ones(width), mode="valid")
        middle = int(np.argmin(loudness)) * frame + width * frame // 2
        spans.append((start, first + middle))
        start = first + middle
    spans.append((start, len(samples)))
    return spans


def is_unspaced(char: str) -> bool:
    """Whether ``char`` belongs to a script written without spaces: Chinese, Japanese, Thai, Lao, Khmer, Burmese."""
    code = ord(char)
    return (
        0x0E00 <= code <= 0x0EFF
        or 0x1000 <= code <= 0x109F
        or 0x1780 <= code <= 0x17FF
        or 0x3000 <= code <= 0x30FF
        or 0x3400 <= code <= 0x4DBF
        or 0x4E00 <= code <= 0x9FFF
        or 0xF900 <= code <= 0xFAFF
        or 0xFF00 <= code <= 0xFFEF
        or 0x20000 <= code <= 0x323AF
    )


def join_texts(texts: list[str]) -> str:
    """Texts of consecutive segments as one; a space between them unless both sides are of an unspaced script."""
    joined = ""
    for text in filter(None, (text.strip() for text in texts)):
        space = "" if not joined or (is_unspaced(joined[-1]) and is_unspaced(text[0])) else " "
        joined += space + text
    return joined
