"""When each token is said, and the path of the greedy decoder's loop that follows from it.

With a frame for each token the transducer needs no sum over alignments: at every place that the loop visits there is
one right token and one right duration. From a place that is a little off the path, the right choice is the one that
leads back to it; training visits such places on purpose.
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
LONGEST = 4  # frames that a choice can go on by
# The mark of a number's last digit, which espeak gives with the character after it: "7 ", "6?".
_LAST_DIGIT = re.compile(r"\d\D")


class Visit(NamedTuple):
    """A place of the loop, tokens before it, and what is right there: a token (None: blank) and frames to go on by."""

    frame: int
    before: int
    token: int | None
    duration: int


def usual_spelling(item: Item) -> Item:
    """``item`` without what its context alone decides: of names that sound alike, the one that is usually written."""
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
    """(place in the text, seconds) of the words that have marks, in order."""
    found: list[tuple[int, float]] = []
    end = 0
    for start, label in item.words:
        if _LAST_DIGIT.fullmatch(label):
            index, after = end - 1, end
        else:
            index = item.text.find(label.strip(), end)
            after = index + len(label.strip())
        if index < 0 or (found and index <= found[-1][0]):
            continue
        found.append((index, start))
        end = after
    return found


def character_times(item: Item) -> list[float]:
    """Seconds at which each character is said: spread over the phonemes from one word's mark to the next one's.

    Punctuation is said where the sound before it ends.
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
        said = [i for i in range(first, following) if item.text[i].isalnum()]
        for rank, index in enumerate(said):
            sound = int(rank / len(said) * len(sounds))
            times[index] = start if rank == 0 or not len(sounds) else float(sounds[sound])
        for index in range(first, following):
            if not item.text[index].isalnum():
                left = said and index < said[-1]  # inside of a word or between words without a mark of their own
                times[index] = times[index - 1] if left else over
    return times


def token_frames(item: Item, tokenizer: Tokenizer, frames: int) -> tuple[list[int], list[int]]:
    """(token ids, the encoder's frame of each), frames never going back and below ``frames``."""
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
    """The visits of the loop for tokens at ``places``; a step in ``1 / stray`` goes a frame too far or not far enough.

    At the end nothing more is to come, and a blank goes on as far as it can.
    """
    visits: list[Visit] = []
    frame = done = 0
    while frame < frames:
        if done < len(indices) and frame >= indices[done]:
            ahead = indices[done + 1] if done + 1 < len(indices) else frames
            step = min(LONGEST, max(0, ahead - frame))
            visits.append(Visit(frame, done, done, step))
            done += 1
            least = 0
        else:
            step = min(LONGEST, indices[done] - frame) if done < len(indices) else LONGEST
            visits.append(Visit(frame, done, None, step))
            least = 1
        if rng is not None and rng.random() < stray:
            step = max(least, step + (1 if rng.random() < 0.5 else -1))
        frame += step
        if done < len(indices):
            frame = min(frame, frames - 1)
    return visits
