"""Compare the bundled voice activity detector (numpy) with Silero's published ONNX graphs in ONNX Runtime.

    python -m benchmarks.vad

Each variant runs the same network on one CPU thread over the same minute of speech, made of the sample recordings.
Variants take turns, so that other load slows all of them; the table shows medians. With 1 frame a call, the time of a
frame is the latency of a 32 ms chunk in a stream. The first run downloads the published package
(`tools.make_vad_weights`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import soundfile
import typer

from runtime.audio.vad import FRAME_SAMPLES, SAMPLE_RATE, STATE_SIZE, SpeechDetector
from tools.make_vad_weights import (
    PLAIN_GRAPH,
    REPOSITORY,
    SEQUENCE_GRAPH,
    STREAM_GRAPH,
    frames_of,
    open_graph,
    stream_scores,
)

Floats = npt.NDArray[np.float32]
Scorer = Callable[[Floats], Floats]

SECONDS = 60
# A chunk of a stream, as the runtime scores files, and as Silero's own code does.
FRAMES_PER_CALL = (1, 128, 512)


def speech() -> Floats:
    """Repeat the short sample recordings to one minute: [960000]."""
    paths = sorted((REPOSITORY / "tests" / "data").glob("*.wav"))
    clips = [soundfile.read(path, dtype="float32")[0] for path in paths]
    return np.resize(np.concatenate(clips), SECONDS * SAMPLE_RATE)


def numpy_scores(frames: Floats, frames_per_call: int) -> Floats:
    """Score frames [n, 576] with the bundled detector: [n]."""
    detector = SpeechDetector()
    starts = range(0, len(frames), frames_per_call)
    return np.concatenate([detector.score(frames[start : start + frames_per_call]) for start in starts])


def sequence_scores(session: ort.InferenceSession, frames: Floats, frames_per_call: int) -> Floats:
    """Score frames [n, 576] with the graph that takes many frames a call: [n]."""
    hidden = cell = np.zeros((1, 1, STATE_SIZE), np.float32)
    scores = []
    for start in range(0, len(frames), frames_per_call):
        feeds = {"input": frames[start : start + frames_per_call], "h": hidden, "c": cell}
        some, hidden, cell = session.run(None, feeds)
        scores.append(some.reshape(-1))
    return np.concatenate(scores)


def scorers() -> dict[str, Scorer]:
    """Every way to score frames, by name; the first one is the reference for scores."""
    stream, plain, sequence = (open_graph(name) for name in (STREAM_GRAPH, PLAIN_GRAPH, SEQUENCE_GRAPH))
    ways: dict[str, Scorer] = {
        "ONNX Runtime, silero_vad, 1 frame a call": partial(stream_scores, stream),
        "ONNX Runtime, silero_vad_16k_op15, 1 frame a call": partial(stream_scores, plain),
    }
    for count in FRAMES_PER_CALL:
        calls = f"{count} frame{'s' if count > 1 else ''} a call"
        ways[f"ONNX Runtime, silero_vad_16k_sequence, {calls}"] = partial(
            sequence_scores, sequence, frames_per_call=count
        )
        ways[f"numpy (bundled), {calls}"] = partial(numpy_scores, frames_per_call=count)
    return ways


def main(rounds: Annotated[int, typer.Option(min=1, help="Number of rounds.")] = 11) -> None:
    """Print seconds for one minute, time a frame of 32 ms, and the largest difference from the reference's scores."""
    frames = frames_of(speech())
    ways = scorers()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, Floats] = {}
    for _ in range(rounds):
        for name, scorer in ways.items():
            start = time.perf_counter()
            scores[name] = scorer(frames)
            seconds[name].append(time.perf_counter() - start)
    reference = next(iter(scores.values()))
    typer.echo(f"{SECONDS} s of speech, {len(frames)} frames of {FRAME_SAMPLES} samples, medians of {rounds} rounds")
    typer.echo(f"{'':56} {'s a minute':>10} {'µs a frame':>10} {'difference':>10}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        difference = float(np.abs(scores[name] - reference).max())
        typer.echo(f"{name:56} {median:10.3f} {median / len(frames) * 1e6:10.1f} {difference:10.1e}")


if __name__ == "__main__":
    typer.run(main)
