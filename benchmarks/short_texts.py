"""Measure what decoding too short texts again costs and gains.

    python -m benchmarks.short_texts --data FOLDER --model FOLDER --joined 40

Every recording is transcribed with the rule of :mod:`runtime.decoding.short_text`, and again without it where the rule
decoded something again; elsewhere both texts are the same. ``--joined`` adds audio in which texts often end too early:
recordings of several languages behind one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import msgspec
import numpy as np
import numpy.typing as npt
import typer

from runtime.audio import open_audio
from runtime.audio.speech import clear_speech
from runtime.decoding.short_text import SHORTEST_SPEECH, SURE_MARGIN, stop_margin
from runtime.engines.base import Engine, SegmentJob, SegmentResult
from runtime.evaluation import Score, Utterance, load_utterances, score
from runtime.pipeline import stretches
from runtime.pipeline.audio_file import concatenate
from runtime.requests import AudioSource
from runtime.results import Transcript
from runtime.transcriber import Transcriber

Floats = npt.NDArray[np.float32]

_LISTED = 12
_GAP_SECONDS = 0.3
_MOST_SECONDS = 27.0
_SEED = 7


class Decoded(msgspec.Struct, frozen=True):
    """One decoded text: tokens for a second of clear speech, the lead of its stop, its speech in seconds."""

    rate: float
    margin: float
    speech: float
    text: str


def record(engine: Engine, decoded: list[Decoded]) -> Callable[..., Iterator[tuple[Any, SegmentResult]]]:
    """Return the engine's ``run``, which also appends each text with enough speech that ended well to ``decoded``."""
    run = engine.run

    def recording(next_job: Callable[[], SegmentJob | None]) -> Iterator[tuple[Any, SegmentResult]]:
        samples: dict[Any, Floats] = {}

        def next_recorded() -> SegmentJob | None:
            if job := next_job():
                samples[job.key] = job.samples
            return job

        for key, result in run(next_recorded):
            speech = clear_speech(samples.pop(key))
            if speech >= SHORTEST_SPEECH and result.stop_log_probability is not None:
                margin = stop_margin(result.stop_log_probability)
                decoded.append(Decoded(result.text_tokens / speech, margin, speech, result.text))
            yield key, result

    return recording


def both(transcriber: Transcriber, sources: Sequence[tuple[AudioSource, int | None]]) -> list[list[Transcript]]:
    """Return the transcripts of sources (audio, rate of an array) with the rule, and those without it."""
    ruled, plain = [], []
    for source, rate in sources:
        transcript = transcriber.transcribe(source, sample_rate=rate)
        ruled.append(transcript)
        if any(segment.decoded_again == "short" for segment in transcript.segments):
            with mock.patch.object(stretches, "is_short", return_value=False):
                transcript = transcriber.transcribe(source, sample_rate=rate)
        plain.append(transcript)
    return [ruled, plain]


def join(utterances: Sequence[Utterance], count: int, rate: int) -> tuple[list[Floats], list[Utterance]]:
    """Return ``count`` audios of two to five recordings each, in random order from a fixed seed, with their texts."""
    rng = np.random.default_rng(_SEED)
    gap = np.zeros(int(_GAP_SECONDS * rate), np.float32)
    audios, texts = list[Floats](), list[Utterance]()
    while len(audios) < count:
        parts, chosen = list[Floats](), list[Utterance]()
        for index in rng.integers(0, len(utterances), rng.integers(2, 6)):
            with open_audio(utterances[index].audio, rate) as reader:
                samples = concatenate(reader.blocks())
            if sum(map(len, parts)) + len(samples) <= _MOST_SECONDS * rate:
                parts += [samples, gap]
                chosen.append(utterances[index])
        if len(chosen) > 1:
            audios.append(np.concatenate(parts))
            text = " ".join(each.text for each in chosen)
            texts.append(Utterance(Path(f"joined-{len(audios)}"), text, "und"))
    return audios, texts


def report(name: str, utterances: Sequence[Utterance], ruled: list[Transcript], plain: list[Transcript]) -> None:
    """Print the errors with and without the rule, and each text that the rule changed."""
    again = [index for index, each in enumerate(ruled) if any(one.decoded_again == "short" for one in each.segments)]
    typer.echo(f"{name}: {len(again)} of {len(ruled)} decoded again")
    rows: list[list[Score]] = [score(utterances, [each.text for each in texts]) for texts in (plain, ruled)]
    for before, after in zip(*rows, strict=True):
        wrong = [each.substitutions + each.deletions + each.insertions for each in (before, after)]
        typer.echo(
            f"  {before.language}: {wrong[0]} errors without the rule and {wrong[1]} with it in "
            f"{before.reference_units} {before.unit}; {before.deletions} and {after.deletions} of them left out"
        )
    for index in again:
        typer.echo(f"  {utterances[index].audio.name}: {plain[index].text!r} → {ruled[index].text!r}")


def main(
    data: Annotated[Path, typer.Option(help="Folder of recordings with reference texts.")],
    model: Annotated[Path | None, typer.Option(help="Folder of the model. [default: the bundled model]")] = None,
    joined: Annotated[int, typer.Option(min=0, help="Number of audios joined from several recordings.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first recordings. [default: all]")] = None,
) -> None:
    """Print errors with and without the rule, and the texts with the fewest tokens for their speech."""
    transcriber = Transcriber.from_artifact(model)
    utterances = load_utterances(data, None)[:limit]
    decoded: list[Decoded] = []
    with mock.patch.object(transcriber.engine, "run", record(transcriber.engine, decoded)):
        report("recordings", utterances, *both(transcriber, [(each.audio, None) for each in utterances]))
    typer.echo(f"{len(decoded)} texts with at least {SHORTEST_SPEECH:g} s of clear speech; the fewest tokens:")
    for each in sorted(decoded, key=lambda each: each.rate)[:_LISTED]:
        sure = "sure" if each.margin >= SURE_MARGIN else "unsure"
        typer.echo(f"  {each.rate:.2f} a second of {each.speech:.1f} s, {sure} of the end: {each.text[:60]!r}")
    if joined:
        rate = transcriber.engine.sample_rate
        audios, texts = join(utterances, joined, rate)
        report("joined", texts, *both(transcriber, [(audio, rate) for audio in audios]))


if __name__ == "__main__":
    typer.run(main)
