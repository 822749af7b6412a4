"""Accuracy of the exported small Parakeet on the English and Russian part of the held-out set, for its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime import Request, Transcriber
from runtime.results import Transcript
from tools.tiny import evaluate
from tools.tiny.dataset import Item
from tools.tiny.evaluate import HeldOut, VoiceRates, voice_rates
from tools.tiny.parakeet.train import LANGUAGES
from tools.tiny.synth import RATE
from tools.tiny.through_runtime import in_order, words_of
from tools.tiny.word_times import StartErrors, summary

MAX_ERROR_RATE, MIN_EMPTY, MAX_START_ERROR = 0.04, 0.95, 0.08


@dataclass(frozen=True, slots=True)
class Rates:
    """Figures of a language: word error rates by voice, share of texts that are exact with case and punctuation, word
    starts.
    """

    utterances: int
    voices: VoiceRates
    exact: float
    starts: StartErrors


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures by language code, and the share of empty texts on ``clips`` of noise."""

    rates: dict[str, Rates]
    clips: int
    empty: float


def measure(artifact: Path, data: HeldOut, threads: int) -> Figures:
    """Transcribe with the runtime without voice activity detection, so that the model gets every sample."""
    transcriber = Transcriber.from_artifact(artifact, threads=threads, vad=False)
    rates = {}
    for code in LANGUAGES:
        chosen = [(item, clip) for item, clip in zip(data.items, data.clips, strict=True) if item.language == code]
        transcripts = in_order(transcriber, [Request(clip, sample_rate=RATE) for _, clip in chosen])
        rates[code] = _rates(code, [item for item, _ in chosen], transcripts)
    silent = [not each.text for each in in_order(transcriber, [Request(clip, sample_rate=RATE) for clip in data.noise])]
    return Figures(rates, len(silent), float(np.mean(silent)))


def _rates(code: str, items: Sequence[Item], transcripts: Sequence[Transcript]) -> Rates:
    pairs = list(zip(items, transcripts, strict=True))
    return Rates(
        utterances=len(items),
        voices=voice_rates(code, items, [transcript.text for transcript in transcripts]),
        exact=float(np.mean([item.text == transcript.text for item, transcript in pairs])),
        starts=summary((words_of(transcript), item.words) for item, transcript in pairs),
    )


def missed(figures: Figures) -> list[str]:
    """Return one sentence for each target that the figures miss."""
    values = {"share of empty texts on noise": figures.empty}
    limits: dict[str, float] = {}
    for code, rates in figures.rates.items():
        errors, starts = (
            f"{LANGUAGES[code]}: word error rate",
            f"{LANGUAGES[code]}: mean error of word starts in seconds",
        )
        values |= {errors: rates.voices.all, starts: rates.starts.mean}
        limits |= {errors: MAX_ERROR_RATE, starts: MAX_START_ERROR}
    return evaluate.missed(values, limits, {"share of empty texts on noise": MIN_EMPTY})


def table(figures: Figures) -> str:
    """Return the tables of the card in Markdown."""
    lines = [
        "| word error rate | all | training voices | held-out voice | exact, with case and punctuation |",
        "|---|---|---|---|---|",
    ]
    for code, rates in figures.rates.items():
        cells = [f"{value:.2%}" for value in (*rates.voices, rates.exact)]
        lines.append(f"| {LANGUAGES[code]} | {' | '.join(cells)} |")
    lines += ["", "| | |", "|---|---|"]
    utterances = sum(rates.utterances for rates in figures.rates.values())
    lines += [f"| utterances | {utterances} |"]
    lines += [f"| empty text on clips without speech | {figures.empty:.1%} of {figures.clips} |"]
    lines += [
        f"| starts of words, {LANGUAGES[code]} | {rates.starts.sentence()} |" for code, rates in figures.rates.items()
    ]
    return "\n".join(lines)
