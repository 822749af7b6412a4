"""Accuracy of the exported small GigaAM on the Russian part of the held-out set, for the table of its card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime import Request, Transcriber
from tools.tiny import evaluate
from tools.tiny.evaluate import HeldOut, VoiceRates, normalize, voice_rates
from tools.tiny.gigaam.model import RATE
from tools.tiny.through_runtime import in_order, words_of
from tools.tiny.word_times import StartErrors, summary

MAX_ERROR_RATE, MIN_EMPTY, MAX_START_ERROR = 0.04, 0.95, 0.05


@dataclass(frozen=True, slots=True)
class Figures:
    """Word error rates by voice, share of exact texts, share of empty texts on ``clips`` of noise, word starts."""

    utterances: int
    rates: VoiceRates
    exact: float
    clips: int
    empty: float
    starts: StartErrors


def measure(artifact: Path, data: HeldOut, threads: int) -> Figures:
    """Transcribe with the runtime without voice activity detection, so that the model gets every sample."""
    transcriber = Transcriber.from_artifact(artifact, threads=threads, vad=False)
    chosen = [(item, clip) for item, clip in zip(data.items, data.clips, strict=True) if item.language == "ru"]
    items = [item for item, _ in chosen]
    transcripts = in_order(transcriber, [Request(clip, sample_rate=RATE) for _, clip in chosen])
    noise = in_order(transcriber, [Request(clip, sample_rate=RATE) for clip in data.noise])
    texts = [transcript.text for transcript in transcripts]
    return Figures(
        utterances=len(items),
        rates=voice_rates("ru", items, texts),
        exact=sum(normalize(item.text) == text for item, text in zip(items, texts, strict=True)) / len(items),
        clips=len(data.noise),
        empty=sum(not each.text for each in noise) / len(noise),
        starts=summary((words_of(transcript), item.words) for item, transcript in zip(items, transcripts, strict=True)),
    )


def missed(figures: Figures) -> list[str]:
    """Return one sentence for each target that the figures miss."""
    values = {
        "word error rate": figures.rates.all,
        "share of empty texts on noise": figures.empty,
        "mean error of word starts in seconds": figures.starts.mean,
    }
    limits = {"word error rate": MAX_ERROR_RATE, "mean error of word starts in seconds": MAX_START_ERROR}
    return evaluate.missed(values, limits, {"share of empty texts on noise": MIN_EMPTY})


def table(figures: Figures) -> str:
    """Return the table of the card in Markdown."""
    rates = figures.rates
    return "\n".join(
        [
            "| word error rate | all | training voices | held-out voice | texts without any error |",
            "|---|---|---|---|---|",
            f"| Russian | {rates.all:.2%} | {rates.training:.2%} | {rates.held_out:.2%} | {figures.exact:.2%} |",
            "",
            "| | |",
            "|---|---|",
            f"| utterances | {figures.utterances} |",
            f"| empty text on clips without speech | {figures.empty:.1%} of {figures.clips} |",
            f"| starts of words | {figures.starts.sentence()} |",
        ]
    )
