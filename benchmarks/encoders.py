"""Time the encoders of several artifacts of one model in turns, over one full segment of speech.

    python -m benchmarks.encoders build/benchmarks/real/artifacts/float32 artifacts/whisper-base-int8

Real recordings are joined to one segment. All encoders are loaded in one process and take turns, so that other load on
the machine slows all of them. The first artifact is the one that the others are compared with.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.markdown import table
from benchmarks.stamp import measured, stamp
from quantize.audio_sets import real_utterances
from runtime import Transcriber
from runtime.audio import load_audio
from runtime.engines.base import Probe, SegmentOptions
from runtime.errors import AsrError
from runtime.model.artifact import Artifact, open_artifact
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import make_session


def find_probe(artifact: Artifact) -> Probe:
    """Return the inputs of the encoder for one full segment of speech."""
    engine = Transcriber.from_artifact(artifact.path).engine
    clips = [load_audio(each.audio, engine.sample_rate) for each in real_utterances("evaluation")]
    samples = np.concatenate(clips)[: int(engine.segment_seconds * engine.sample_rate)]
    (probe,) = [each for each in engine.probes(samples, [], SegmentOptions()) if each.role == "encoder"]
    return probe


def main(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Artifacts of one model.")],
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each encoder.")] = 30,
) -> None:
    """Print a table of the medians, and of the median of the ratios within a round."""
    try:
        opened = [open_artifact(path) for path in artifacts]
        probe = find_probe(opened[0])
        sessions = [make_session(each.graph_path("encoder"), ProviderSpec()) for each in opened]
    except AsrError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    seconds = np.empty((rounds + 1, len(sessions)))
    for times in seconds:
        for index, session in enumerate(sessions):
            began = time.perf_counter()
            session.run(probe.outputs, probe.feeds)
            times[index] = time.perf_counter() - began
    seconds = seconds[1:]  # the first run allocates
    rows = [
        [
            each.manifest.name if each.manifest.quantization else f"{each.manifest.name}, float32",
            f"{1e3 * np.median(seconds[:, index]):.0f}",
            f"{np.median(seconds[:, 0] / seconds[:, index]):.2f}",
        ]
        for index, each in enumerate(opened)
    ]
    typer.echo(table(["encoder of", "ms", "times as fast as the first"], rows))
    typer.echo(f"\n{measured(stamp())}")


if __name__ == "__main__":
    typer.run(main)
