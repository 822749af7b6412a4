"""Accuracy of the exported small Whisper in the runtime, for the tables of its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from runtime import Request, Transcriber
from runtime.results import Transcript
from tools.tiny import evaluate as common
from tools.tiny.dataset import Item
from tools.tiny.evaluate import Floats, HeldOut
from tools.tiny.sentences import LANGUAGES
from tools.tiny.through_runtime import in_order
from tools.tiny.whisper.model import RATE
from tools.tiny.whisper.targets import times

# Number of held-out utterances with contexts: each takes two windows, and the figure needs no more.
CONTEXTS = 60
TARGETS = {"en all": 0.04, "ru all": 0.04, "zh all": 0.04}
FLOORS = {"language right": 0.98}


def evaluate(artifact: Path, data: HeldOut, threads: int) -> dict[str, float]:
    """Return every figure of the card by name; without voice activity detection, the model gets every sample."""
    transcriber = Transcriber.from_artifact(artifact, threads=threads, vad=False)
    data = replace(data, context_items=data.context_items[:CONTEXTS], context_clips=data.context_clips[:CONTEXTS])

    def transcripts(clips: Sequence[Floats], contexts: Sequence[str], *, timed: bool = False) -> list[Transcript]:
        requests = [
            Request(clip, context=context, sample_rate=RATE, timestamps=timed)
            for clip, context in zip(clips, contexts, strict=True)
        ]
        return in_order(transcriber, requests)

    def recognize(clips: Sequence[Floats], contexts: Sequence[str]) -> list[tuple[str, str]]:
        return [(each.language or "", each.text) for each in transcripts(clips, contexts)]

    figures = common.evaluate(recognize, data)
    timed = transcripts(data.clips, [""] * len(data.clips), timed=True)
    return figures | _timestamps(data.items, timed)


def _timestamps(items: Sequence[Item], transcripts: Sequence[Transcript]) -> dict[str, float]:
    """Return errors in seconds of starts and ends of sentences, for transcripts with the true number of sentences."""
    starts, ends, same = list[float](), list[float](), 0
    for item, transcript in zip(items, transcripts, strict=True):
        true = times(item)
        if len(true) != len(transcript.segments):
            continue
        same += 1
        for (start, end), segment in zip(true, transcript.segments, strict=True):
            starts.append(abs(segment.start - start))
            ends.append(abs(segment.end - end))
    figures = {"as many sentences": same / len(items)}
    figures |= {"start off": float(np.mean(starts)), "end off": float(np.mean(ends))} if starts else {}
    for code in LANGUAGES:
        rows = [i for i, item in enumerate(items) if item.language == code]
        texts = [transcripts[i].text for i in rows]
        figures[f"{code} timed"] = common.error_rate(code, [items[i].text for i in rows], texts)
    return figures


def missed(figures: dict[str, float]) -> list[str]:
    """Return one sentence for each target that the figures miss."""
    return common.missed(figures, TARGETS, FLOORS)


def table(figures: dict[str, float]) -> str:
    """Return the tables of the card in Markdown."""
    lines = [
        common.table(figures),
        *(f"| error rate with timestamps, {code} | {figures[f'{code} timed']:.2%} |" for code in LANGUAGES),
        f"| clips with one segment for each sentence | {figures['as many sentences']:.1%} |",
    ]
    if "start off" in figures:
        lines.append(f"| mean error of their starts | {figures['start off']:.3f} s |")
        lines.append(f"| mean error of their ends | {figures['end off']:.3f} s |")
    return "\n".join(lines)
