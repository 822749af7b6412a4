"""Targets of the small Whisper: rows of token ids, the tokens to write after them, and their times."""

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
# Targets that are not tokens: any token, and the stop in place of a text where there is no speech.
ANY, NOTHING = -100, -2
_SENTENCE = re.compile(r"[^.!?。！？]+[.!?。！？]+")
# Largest distance in characters of a mark's word from the end of the word before. Articles have no marks. Marks of
# parts of a number have no text of their own, but the next number may match them.
_NEAR, _NEAR_DIGITS = 8, 2

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A sentence: start and end in seconds, its tokens, and start and end of each token."""

    start: float
    end: float
    tokens: list[int]
    spans: list[Span]

    def later(self, seconds: float) -> Phrase:
        """Return the sentence shifted by ``seconds``."""
        return Phrase(
            self.start + seconds,
            self.end + seconds,
            self.tokens,
            [(begin + seconds, end + seconds) for begin, end in self.spans],
        )


@dataclass(slots=True)
class Row:
    """Token ids, and for each the target token after it (or ``ANY``, ``NOTHING``), and its time (or ``UNKNOWN``)."""

    ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def add(self, token: int, span: Span = UNKNOWN, *, learned: bool = True) -> None:
        """Append ``token``; if ``learned``, it is the target of the token before."""
        if self.ids:
            self.targets[-1] = token if learned else ANY
        self.ids.append(token)
        self.targets.append(ANY)
        self.spans.append(span)


def usual(item: Item) -> str:
    """Return the text with the default spellings of names, which apply without a context."""
    text = item.text
    for word in item.hot:
        default = next((group[0] for group in HOMOPHONES[item.language] if word in group), word)
        pattern = re.escape(word) if item.language == "zh" else rf"\b{re.escape(word)}\b"
        text = re.sub(pattern, default, text)
    return text


def _word_offsets(text: str, marks: Sequence[tuple[float, str]]) -> tuple[list[float], list[float]]:
    """Return the ascending offsets in ``text`` of the marked words, and their times."""
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
    """Return start and end of each sentence of ``item`` in seconds."""
    offsets, marks = _word_offsets(item.text, item.words)
    sounds = [*sounding(item), (item.count / RATE, "_")]
    sentences = _SENTENCE.finditer(item.text)
    begins = [marks[int(np.searchsorted(offsets, _first(each)))] for each in sentences]
    ends = []
    for limit in [*begins[1:], float("inf")]:
        last = max(i for i, (start, label) in enumerate(sounds) if start < limit - 0.01 and label not in SILENT)
        ends.append(min(sounds[last + 1][0], limit))
    return list(zip(begins, ends, strict=True))


def phrases(item: Item, tokenizer: Tokenizer, text: str) -> list[Phrase]:
    """Return the sentences of ``item`` in the spellings of ``text``, which has the same words."""
    offsets, marks = _word_offsets(item.text, item.words)
    originals, written = _SENTENCE.finditer(item.text), _SENTENCE.finditer(text)
    result = []
    for old, new, (begin, end) in zip(originals, written, times(item), strict=True):
        # Times of characters are interpolated between words; spellings differ in length by about a letter.
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
    """Maker of rows with one tokenizer."""

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
        """Return the ids of a text in the middle of a transcript, as the runtime writes contexts."""
        return list(self.tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids)

    def speech(
        self, language: str, phrases: Sequence[Phrase], *, timed: bool, context: Sequence[int] = (), cut: float | None
    ) -> Row:
        """Return the row of a window of speech.

        Args:
            language: its code.
            phrases: sentences that end in the window.
            timed: write timestamps.
            context: token ids of the text before.
            cut: start in seconds of a sentence that ends after the window; None if there is none.
        """
        row = self._prompt(language, context, language_token=True)
        if not timed:
            row.add(self.no_timestamps, learned=False)
        latest = 0
        for phrase in phrases:
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
        """Return the row of a window without speech.

        ``wrong`` is any token of text: decoding rules forbid an empty text, so one token is written, and the stop must
        follow it.
        """
        row = self._prompt(language, (), language_token=False)
        row.targets[0 if row.ids[0] == self.start else -1] = self.no_speech
        if timed:
            row.add(self.zero)
        else:
            row.add(self.no_timestamps, learned=False)
            row.add(wrong)
            row.targets[-2] = NOTHING
        row.add(self.stop)
        return row

    def _prompt(self, language: str, context: Sequence[int], *, language_token: bool) -> Row:
        row = Row()
        if context:
            row.add(self.previous)
            for token in context:
                row.add(token, learned=False)
        row.add(self.start, learned=False)
        row.add(token_id(self.tokenizer, f"<|{language}|>"), learned=language_token)
        row.add(self.transcribe, learned=False)
        return row


def padded(rows: Sequence[Row], filler: int) -> Iterator[np.ndarray]:
    """Yield ids [B, S], targets [B, S] and spans [B, S, 2]."""
    width = max(len(row.ids) for row in rows)
    yield np.array([row.ids + [filler] * (width - len(row.ids)) for row in rows], np.int64)
    yield np.array([row.targets + [ANY] * (width - len(row.ids)) for row in rows], np.int64)
    yield np.array([row.spans + [UNKNOWN] * (width - len(row.ids)) for row in rows], np.float32)
