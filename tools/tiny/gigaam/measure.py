"""Accuracy of the exported artifact on the Russian part of the held-out set: the table of the model card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime import Request, Transcriber
from tools.tiny.dataset import Item
from tools.tiny.evaluate import HeldOut, error_rate, normalize
from tools.tiny.gigaam.model import RATE
from tools.tiny.through_runtime import in_order, words_of
from tools.tiny.word_times import StartErrors, summary

MOST_ERRORS, LEAST_EMPTY, MOST_START_ERROR = 0.04, 0.95, 0.05


@dataclass(frozen=True, slots=True)
class Figures:
    """Word error rates of all, of heard and of unheard voices; shares of exact texts and of empty ones on noise."""

    utterances: int
    all: float
    heard: float
    unheard: float
    exact: float
    clips: int
    empty: float
    starts: StartErrors


def measure(artifact: Path, data: HeldOut, unheard: Callable[[Item], bool], threads: int) -> Figures:
    """Transcribe with the runtime, which looks for no speech before: the model itself hears every sample."""
    transcriber = Transcriber.from_artifact(artifact, threads=threads, vad=False)
    chosen = [(item, clip) for item, clip in zip(data.items, data.clips, strict=True) if item.language == "ru"]
    items = [item for item, _ in chosen]
    found = in_order(transcriber, [Request(clip, sample_rate=RATE) for _, clip in chosen])
    noise = in_order(transcriber, [Request(clip, sample_rate=RATE) for clip in data.noise])
    rows = [(item.text, transcript.text, unheard(item)) for item, transcript in zip(items, found, strict=True)]

    def rate(voices: tuple[bool, ...]) -> float:
        pairs = [(true, text) for true, text, voice in rows if voice in voices]
        return error_rate("ru", [true for true, _ in pairs], [text for _, text in pairs])

    return Figures(
        utterances=len(rows),
        all=rate((True, False)),
        heard=rate((False,)),
        unheard=rate((True,)),
        exact=sum(normalize(true) == text for true, text, _ in rows) / len(rows),
        clips=len(data.noise),
        empty=sum(not each.text for each in noise) / len(noise),
        starts=summary((words_of(transcript), item.words) for item, transcript in zip(items, found, strict=True)),
    )


def missed(figures: Figures) -> list[str]:
    """Targets that the figures do not reach."""
    said = []
    if not figures.all <= MOST_ERRORS:
        said.append(f"the word error rate is {figures.all:.3f}, above {MOST_ERRORS}")
    if not figures.empty >= LEAST_EMPTY:
        said.append(f"empty text on noise is {figures.empty:.3f}, below {LEAST_EMPTY}")
    if not figures.starts.mean <= MOST_START_ERROR:
        said.append(f"words start {figures.starts.mean:.3f} s off in the mean, above {MOST_START_ERROR}")
    return said


def table(figures: Figures) -> str:
    """The card's table in Markdown."""
    return "\n".join(
        [
            "| word error rate | all | voices heard in training | unheard voice | texts without any error |",
            "|---|---|---|---|---|",
            f"| Russian | {figures.all:.2%} | {figures.heard:.2%} | {figures.unheard:.2%} | {figures.exact:.2%} |",
            "",
            "| | |",
            "|---|---|",
            f"| utterances | {figures.utterances} |",
            f"| empty text on clips without speech | {figures.empty:.1%} of {figures.clips} |",
            f"| starts of words | {figures.starts.sentence()} |",
        ]
    )
