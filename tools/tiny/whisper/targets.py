"""What the small Whisper learns to write: rows of token ids with their targets, and when each was spoken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from tools.tiny.dataset import SILENT, Item, sounding
from tools.tiny.sentences import HOMOPHONES
from tools.tiny.synth import RATE
from tools.tiny.whisper.tokenizer import spaced, token_id

STEP = 0.02
UNKNOWN = (-1.0, -1.0)
# Targets that are no tokens: any token, and the stop where a text would begin if anybody spoke.
ANY, NOTHING = -100, -2
_SENTENCE = re.compile(r"[^.!?。！？]+[.!?。！？]+")
# How far from where the text goes on a mark's word may be. Articles have no marks of their own; nor has part of a
# number a text, but the next number may look like it.
_NEAR, _NEAR_DIGITS = 8, 2

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A sentence: when it was spoken, its tokens, and when each of them was, in seconds."""

    start: float
    end: float
    tokens: list[int]
    spans: list[Span]

    def later(self, seconds: float) -> Phrase:
        """The same sentence, ``seconds`` later."""
        return Phrase(
            self.start + seconds,
            self.end + seconds,
            self.tokens,
            [(begin + seconds, end + seconds) for begin, end in self.spans],
        )


@dataclass(slots=True)
class Row:
    """Token ids, for each the token that is to follow it (or ``ANY``, ``NOTHING``), and when it was spoken (or
    ``UNKNOWN``).
    """

    ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def add(self, token: int, span: Span = UNKNOWN, *, learnt: bool = True) -> None:
        """Append ``token``; if ``learnt``, as the target of the one before."""
        if self.ids:
            self.targets[-1] = token if learnt else ANY
        self.ids.append(token)
        self.targets.append(ANY)
        self.spans.append(span)


def usual(item: Item) -> str:
    """The text with the spelling of names that is written when no context is given."""
    text = item.text
    for word in item.hot:
        default = next((group[0] for group in HOMOPHONES[item.language] if word in group), word)
        pattern = re.escape(word) if item.language == "zh" else rf"\b{re.escape(word)}\b"
        text = re.sub(pattern, default, text)
    return text


def _places(text: str, marks: Sequence[tuple[float, str]]) -> tuple[list[float], list[float]]:
    """Offsets in ``text`` of the words that marks name, ascending, and their times."""
    offsets: list[float] = []
    times: list[float] = []
    cursor = 0
    for time, label in marks:
        word = label.strip()
        near = _NEAR_DIGITS if word.isdigit() else _NEAR
        index = text.find(word, cursor, cursor + near + len(word))
        if index >= 0:
            offsets.append(index)
            times.append(time)
            cursor = index + len(word)
    return offsets, times


def times(item: Item) -> list[Span]:
    """When each sentence of ``item`` begins and ends, in seconds."""
    offsets, marks = _places(item.text, item.words)
    sounds = [*sounding(item), (item.count / RATE, "_")]
    said = list(_SENTENCE.finditer(item.text))
    begins = [marks[int(np.searchsorted(offsets, _first(each)))] for each in said]
    ends = []
    for limit in [*begins[1:], float("inf")]:
        last = max(i for i, (start, label) in enumerate(sounds) if start < limit - 0.01 and label not in SILENT)
        ends.append(min(sounds[last + 1][0], limit))
    return list(zip(begins, ends, strict=True))


def phrases(item: Item, tokenizer: Tokenizer, text: str) -> list[Phrase]:
    """The sentences of ``item``, written as in ``text``, which has the words of ``item.text`` in other spellings."""
    offsets, marks = _places(item.text, item.words)
    said, written = _SENTENCE.finditer(item.text), _SENTENCE.finditer(text)
    result = []
    for old, new, (begin, end) in zip(said, written, times(item), strict=True):
        # When a character was spoken: between the words around it; homophones differ in length by a letter or so.
        inside = [i for i, offset in enumerate(offsets) if _first(old) <= offset < old.end()]
        knots = [*(offsets[i] for i in inside), float(old.end())]
        seconds = [*(marks[i] for i in inside), max(end, marks[inside[-1]] + STEP)]
        content = new.group().strip()
        prefixed = spaced(item.language, content)
        encoded = tokenizer.encode(prefixed, add_special_tokens=False)
        edges = np.array(encoded.offsets, np.float64) + (_first(old) - len(prefixed) + len(content))
        spoken = np.interp(edges, knots, seconds)
        result.append(Phrase(begin, end, list(encoded.ids), [(float(a), float(b)) for a, b in spoken]))
    return result


def _first(sentence: re.Match[str]) -> int:
    return sentence.start() + len(sentence.group()) - len(sentence.group().lstrip())


class Writer:
    """Rows of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

        def known(token: str) -> int:
            return token_id(tokenizer, token)

        self.start, self.stop, self.transcribe = (
            known("<|startoftranscript|>"),
            known("<|endoftext|>"),
            known("<|transcribe|>"),
        )
        self.previous, self.no_speech = known("<|startofprev|>"), known("<|nospeech|>")
        self.no_timestamps, self.zero = known("<|notimestamps|>"), known("<|0.00|>")

    def text_ids(self, text: str) -> list[int]:
        """Ids of text that stands in the middle of a transcript, as the runtime writes contexts."""
        return list(self.tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids)

    def speech(
        self, language: str, said: Sequence[Phrase], *, timed: bool, context: Sequence[int] = (), cut: float | None
    ) -> Row:
        """The row of a window of speech: ``cut`` is when the last sentence begins, which the window does not hold to
        its end.
        """
        row = self._prompt(language, context, language_token=True)
        if not timed:
            row.add(self.no_timestamps, learnt=False)
        latest = 0
        for phrase in said:
            begin = max(latest, round(phrase.start / STEP))
            end = max(begin + 1, round(phrase.end / STEP))
            latest = end
            if timed:
                row.add(self.zero + begin, (phrase.start - STEP, phrase.start + 5 * STEP))
            for token, span in zip(phrase.tokens, phrase.spans, strict=True):
                row.add(token, span)
            if timed:
                row.add(self.zero + end, (phrase.end - 5 * STEP, phrase.end + STEP))
        if timed and cut is not None:
            row.add(self.zero + max(latest, round(cut / STEP)), (cut - STEP, cut + 5 * STEP))
        row.add(self.stop)
        return row

    def silence(self, language: str, *, timed: bool, wrong: int) -> Row:
        """The row of a window without speech. ``wrong`` is a token of text: the rules of decoding forbid an empty
        text, so that one is written, and the stop is to come behind it.
        """
        row = self._prompt(language, (), language_token=False)
        row.targets[0 if row.ids[0] == self.start else -1] = self.no_speech
        if timed:
            row.add(self.zero)
        else:
            row.add(self.no_timestamps, learnt=False)
            row.add(wrong)
            row.targets[-2] = NOTHING
        row.add(self.stop)
        return row

    def _prompt(self, language: str, context: Sequence[int], *, language_token: bool) -> Row:
        row = Row()
        if context:
            row.add(self.previous)
            for token in context:
                row.add(token, learnt=False)
        row.add(self.start, learnt=False)
        row.add(token_id(self.tokenizer, f"<|{language}|>"), learnt=language_token)
        row.add(self.transcribe, learnt=False)
        return row


def padded(rows: Sequence[Row], filler: int) -> Iterator[np.ndarray]:
    """Ids [B, S], targets [B, S], spans [B, S, 2]."""
    width = max(len(row.ids) for row in rows)
    yield np.array([row.ids + [filler] * (width - len(row.ids)) for row in rows], np.int64)
    yield np.array([row.targets + [ANY] * (width - len(row.ids)) for row in rows], np.int64)
    yield np.array([row.spans + [UNKNOWN] * (width - len(row.ids)) for row in rows], np.float32)
