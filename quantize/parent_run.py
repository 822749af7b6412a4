"""Run the whole parent on audio: inputs of its graphs for calibration and comparison, and its transcripts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantize.audio_sets import Audio, Clip, probe_clips
from quantize.gate import EvaluationRun
from quantize.progress import Report
from runtime.audio import load_audio
from runtime.engines.base import Engine, EngineOptions, Probe, SegmentJob, SegmentOptions
from runtime.evaluation import Utterance, recognize
from runtime.model.artifact import Artifact
from runtime.results import Timings
from runtime.transcriber import Transcriber

Floats = npt.NDArray[np.float32]

# Seconds of calibration audio in all. Statistics keep a few hundred rows of each activation, and 20 s have a thousand.
CALIBRATION_SECONDS = 160.0
# Text tokens decoded for each segment: 20 s of speech have about this many, and models with random weights never stop.
_MAX_NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class ParentRun:
    """Results of the parent: probes for calibration and for the gate, and its run of the evaluation audio, if any."""

    calibration: list[Probe]
    gate: list[Probe]
    evaluation: EvaluationRun | None


def run_parent(parent: Artifact, audio: Audio, report: Report) -> ParentRun:
    """Run the parent on all audio. It is closed afterwards: parent and result together may not fit into memory.

    Raises:
        AsrError: Audio cannot be decoded.
    """
    transcriber = Transcriber(parent, EngineOptions())
    engine, languages = transcriber.engine, parent.manifest.languages
    compared = probe_clips(audio.evaluation, parent.manifest.name, languages)
    length = int(engine.segment_seconds * engine.sample_rate)
    with report.step("transcribing calibration audio"):
        packed = pack(audio.calibration, engine.sample_rate, engine.segment_seconds)
        segments = packed + [load_audio(clip, engine.sample_rate, None)[:length] for clip in compared]
        probes = segment_probes(engine, segments)
    calibration = [probe for of_segment in probes[: len(packed)] for probe in of_segment]
    gate = [probe for of_segment in probes[len(packed) :] for probe in of_segment]
    if not audio.evaluation:
        return ParentRun(calibration, gate, None)
    return ParentRun(calibration, gate, transcribe(transcriber, audio.evaluation, "evaluating the parent", report))


def pack(clips: Sequence[Clip], rate: int, seconds: float) -> list[Floats]:
    """Join successive clips of one language to segments.

    A segment of several clips has as much speech as a model gets in use, where an encoder with a fixed window would
    see mostly silence after a short clip, and its time is that of one.

    Args:
        clips: The recordings. Each contributes at most its share of ``CALIBRATION_SECONDS``, from its beginning.
        rate: Sample rate in Hz.
        seconds: Longest segment in seconds.

    Returns:
        Segments, mono float32 [n] at ``rate``.

    Raises:
        AsrError: A recording cannot be decoded.
    """
    longest = int(seconds * rate)
    share = min(longest, int(CALIBRATION_SECONDS * rate) // max(len(clips), 1))
    groups: list[list[Floats]] = []
    language: str | None = None
    for clip in clips:
        samples = load_audio(clip.path, rate, None)[:share]
        room = longest - sum(map(len, groups[-1])) if groups else 0
        if clip.language != language or len(samples) > room:
            groups.append([])
        groups[-1].append(samples)
        language = clip.language
    return [np.concatenate(group) for group in groups]


def segment_probes(engine: Engine, segments: Sequence[Floats]) -> list[list[Probe]]:
    """Transcribe ``segments`` together, and return the inputs of the engine's graphs for each and its text."""
    options = SegmentOptions(max_new_tokens=_MAX_NEW_TOKENS)
    jobs = (
        SegmentJob(index, samples, options, Timings(), time.perf_counter()) for index, samples in enumerate(segments)
    )
    tokens = {index: result.tokens for index, result in engine.run(lambda: next(jobs, None))}
    return [engine.probes(samples, tokens[index], options) for index, samples in enumerate(segments)]


def transcribe(
    transcriber: Transcriber, utterances: list[Utterance], description: str, report: Report
) -> EvaluationRun:
    """Transcribe the evaluation utterances as one step of ``report``.

    Raises:
        AsrError: A recording cannot be decoded.
    """
    with report.counted(description, len(utterances), "utterances") as advance:
        transcripts = recognize(transcriber, utterances, on_progress=lambda *_: advance(1))
    return EvaluationRun(utterances, transcripts)
