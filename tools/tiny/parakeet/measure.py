"""Accuracy of the exported artifact on the English and Russian part of the held-out set: the card's table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime import Request, Transcriber
from runtime.results import Transcript
from tools.tiny.dataset import Item
from tools.tiny.evaluate import HeldOut, error_rate
from tools.tiny.parakeet.train import LANGUAGES
from tools.tiny.synth import RATE
from tools.tiny.through_runtime import in_order, words_of
from tools.tiny.word_times import StartErrors, summary

MOST_ERRORS, LEAST_EMPTY, MOST_START_ERROR = 0.04, 0.95, 0.08


@dataclass(frozen=True, slots=True)
class Rates:
    """Of a language: word error rates of all, of heard and of unheard voices; the share of texts equal to the true one,
    case and punctuation included; how far words' starts are off.
    """

    utterances: int
    all: float
    heard: float
    unheard: float
    exact: float
    starts: StartErrors


@dataclass(frozen=True, slots=True)
class Figures:
    """By the language's code; and the share of empty texts on ``clips`` of noise."""

    rates: dict[str, Rates]
    clips: int
    empty: float


def measure(artifact: Path, data: HeldOut, unheard: Callable[[Item], bool], threads: int) -> Figures:
    """Transcribe with the runtime, which looks for no speech before: the model itself hears every sample."""
    transcriber = Transcriber.from_artifact(artifact, threads=threads, vad=False)
    rates = {}
    for code in LANGUAGES:
        chosen = [(item, clip) for item, clip in zip(data.items, data.clips, strict=True) if item.language == code]
        found = in_order(transcriber, [Request(clip, sample_rate=RATE) for _, clip in chosen])
        rates[code] = _rates(code, [item for item, _ in chosen], found, unheard)
    silent = [not each.text for each in in_order(transcriber, [Request(clip, sample_rate=RATE) for clip in data.noise])]
    return Figures(rates, len(silent), float(np.mean(silent)))


def _rates(code: str, items: Sequence[Item], found: Sequence[Transcript], unheard: Callable[[Item], bool]) -> Rates:
    rows = [(item.text, transcript.text, unheard(item)) for item, transcript in zip(items, found, strict=True)]

    def rate(voices: tuple[bool, ...]) -> float:
        pairs = [(true, text) for true, text, voice in rows if voice in voices]
        return error_rate(code, [true for true, _ in pairs], [text for _, text in pairs])

    return Rates(
        utterances=len(rows),
        all=rate((True, False)),
        heard=rate((False,)),
        unheard=rate((True,)),
        exact=float(np.mean([true == text for true, text, _ in rows])),
        starts=summary((words_of(transcript), item.words) for item, transcript in zip(items, found, strict=True)),
    )


def missed(figures: Figures) -> list[str]:
    """Targets that the figures do not reach."""
    said = []
    for code, rates in figures.rates.items():
        if not rates.all <= MOST_ERRORS:
            said.append(f"{LANGUAGES[code]}: the word error rate is {rates.all:.3f}, above {MOST_ERRORS}")
        if not rates.starts.mean <= MOST_START_ERROR:
            said.append(
                f"{LANGUAGES[code]}: words start {rates.starts.mean:.3f} s off in the mean, above {MOST_START_ERROR}"
            )
    if not figures.empty >= LEAST_EMPTY:
        said.append(f"empty text on noise is {figures.empty:.3f}, below {LEAST_EMPTY}")
    return said


def table(figures: Figures) -> str:
    """The card's tables in Markdown."""
    lines = [
        "| word error rate | all | voices heard in training | unheard voice | exact, with case and punctuation |",
        "|---|---|---|---|---|",
    ]
    for code, rates in figures.rates.items():
        cells = [f"{value:.2%}" for value in (rates.all, rates.heard, rates.unheard, rates.exact)]
        lines.append(f"| {LANGUAGES[code]} | {' | '.join(cells)} |")
    lines += ["", "| | |", "|---|---|"]
    utterances = sum(rates.utterances for rates in figures.rates.values())
    lines += [f"| utterances | {utterances} |"]
    lines += [f"| empty text on clips without speech | {figures.empty:.1%} of {figures.clips} |"]
    lines += [
        f"| starts of words, {LANGUAGES[code]} | {rates.starts.sentence()} |" for code, rates in figures.rates.items()
    ]
    return "\n".join(lines)
