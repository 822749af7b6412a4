"""Frames of tokens, and the path of the greedy decoder's loop that follows from them.

With a frame for each token, training needs no sum over alignments: at each step of the loop there is one right token
and one right duration. Training also takes steps that leave the path by a frame; there the right choice is the one that
returns to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np
from tokenizers import Tokenizer

from tools.tiny.dataset import SILENT, Item, sounding
from tools.tiny.sentences import HOMOPHONES

FRAME_SECONDS = 0.08
LONGEST = 4  # largest duration in frames
# Mark of the last digit of a number, which espeak reports with the character after it: "7 ", "6?".
_LAST_DIGIT = re.compile(r"\d\D")


class Visit(NamedTuple):
    """A step of the loop: its frame, the number of tokens before it, and the right token (None: blank) and duration."""

    frame: int
    before: int
    token: int | None
    duration: int


def usual_spelling(item: Item) -> Item:
    """Return the item with the default spellings of names that sound alike, which only a context can change."""
    if not item.hot:
        return item
    usual = {name: group[0] for group in HOMOPHONES[item.language] for name in group}
    text, words = item.text, item.words
    for name in item.hot:
        word = re.compile(rf"\b{name}\b")
        text = word.sub(usual[name], text)
        words = [(start, word.sub(usual[name], label)) for start, label in words]
    return msgspec.structs.replace(item, text=text, words=words)


def anchors(item: Item) -> list[tuple[int, float]]:
    """Return (index in the text, seconds) of the words that have marks, in order."""
    starts: list[tuple[int, float]] = []
    end = 0
    for start, label in item.words:
        if _LAST_DIGIT.fullmatch(label):
            index, after = end - 1, end
        else:
            index = item.text.find(label.strip(), end)
            after = index + len(label.strip())
        if index < 0 or (starts and index <= starts[-1][0]):
            continue
        starts.append((index, start))
        end = after
    return starts


def character_times(item: Item) -> list[float]:
    """Return the seconds of each character, spread over the phonemes from one word's mark to the next.

    The time of punctuation is the end of the sound before it.
    """
    marks = list(sounding(item))
    starts = np.array([start for start, _ in marks])
    silent = np.array([label in SILENT for _, label in marks])
    known = anchors(item)
    times = [0.0] * len(item.text)
    bounds = [*known, (len(item.text), float(starts[-1]) + 1e-3)]
    for (first, start), (following, until) in pairwise(bounds):
        inside = (starts >= start - 0.02) & (starts < until - 0.02)
        sounds = starts[inside & ~silent]
        pauses = starts[inside & silent]
        pauses = pauses[pauses > (sounds[-1] if len(sounds) else start)]
        over = float(pauses[0]) if len(pauses) else until
        letters = [i for i in range(first, following) if item.text[i].isalnum()]
        for rank, index in enumerate(letters):
            sound = int(rank / len(letters) * len(sounds))
            times[index] = start if rank == 0 or not len(sounds) else float(sounds[sound])
        for index in range(first, following):
            if not item.text[index].isalnum():
                left = letters and index < letters[-1]  # inside of a word or between words without a mark of their own
                times[index] = times[index - 1] if left else over
    return times


def token_frames(item: Item, tokenizer: Tokenizer, frames: int) -> tuple[list[int], list[int]]:
    """Return token ids, and the encoder frame of each: ascending, and below ``frames``."""
    encoding = tokenizer.encode(item.text, add_special_tokens=False)
    times = character_times(item)
    indices: list[int] = []
    for start, end in encoding.offsets:
        first = next((i for i in range(start, end) if not item.text[i].isspace()), min(end, len(times) - 1))
        index = min(frames - 1, max(0, round(times[first] / FRAME_SECONDS)))
        indices.append(max(index, indices[-1] if indices else 0))
    return list(encoding.ids), indices


def walk(
    indices: Sequence[int], frames: int, rng: np.random.Generator | None = None, stray: float = 0.0
) -> list[Visit]:
    """Return the steps of the loop for tokens at the frames ``indices``.

    Args:
        indices: frame of each token, ascending.
        frames: number of frames.
        rng: source of random choices; None for the exact path.
        stray: share of steps that go a frame too far or not far enough.

    Returns:
        The steps; after the last token, blanks have the largest duration.
    """
    visits: list[Visit] = []
    frame = done = 0
    while frame < frames:
        if done < len(indices) and frame >= indices[done]:
            ahead = indices[done + 1] if done + 1 < len(indices) else frames
            step = min(LONGEST, max(0, ahead - frame))
            visits.append(Visit(frame, done, done, step))
            done += 1
            minimum = 0
        else:
            step = min(LONGEST, indices[done] - frame) if done < len(indices) else LONGEST
            visits.append(Visit(frame, done, None, step))
            minimum = 1
        if rng is not None and rng.random() < stray:
            step = max(minimum, step + (1 if rng.random() < 0.5 else -1))
        frame += step
        if done < len(indices):
            frame = min(frame, frames - 1)
    return visits
