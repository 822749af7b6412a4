"""Measure one execution provider in a process of its own: ``python -m runtime.bench.provider_run REQUEST RESULT``.

Each provider has its own process for three reasons: peak memory is counted for a process, a provider can crash its
process, and two providers may need two builds of onnxruntime, which cannot be loaded together.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime

from runtime.audio import load_audio
from runtime.bench.compared import Difference, Measured, Request, difference, worst
from runtime.bench.results import Spread
from runtime.engines.base import Engine, Probe, SegmentOptions
from runtime.errors import AsrError
from runtime.host.files import write_atomically
from runtime.host.memory import peak_resident_bytes
from runtime.ort.providers import availability, read_provider
from runtime.results import Transcript
from runtime.transcriber import Transcriber

# Graphs are compared on the first segment of this number of files, and on at most this number of tokens of its text:
# enough to see a difference, and little to store (a row of logits is 0.6 MB).
_COMPARED_FILES = 4
_COMPARED_TOKENS = 64

Outputs = dict[str, npt.NDArray[Any]]


def measure(request: Request) -> Measured:
    """Open the model with the provider, transcribe all audio ``runs`` times and compare its graphs' outputs.

    Raises:
        AsrError: the provider, the model or the audio cannot be used.
    """
    began = time.perf_counter()
    transcriber = Transcriber.from_artifact(request.model, provider=request.providers, threads=request.threads)
    load = time.perf_counter() - began
    rate = transcriber.engine.sample_rate
    audio = [load_audio(path, rate) for path in request.audio]
    transcripts = _transcribe(transcriber, audio, request)  # warm-up: compiles graphs and grows memory arenas
    runs, totals = [], []
    for _ in range(request.runs):
        began = time.perf_counter()
        runs.append(_transcribe(transcriber, audio, request))
        totals.append(time.perf_counter() - began)
    peak = peak_resident_bytes()
    generated = sum(each.tokens.generated for each in transcripts)

    def spread(stage: str) -> Spread:
        return Spread.of([sum(getattr(each.timings, stage) for each in run) for run in runs])

    decode = spread("decode")
    return Measured(
        load=load,
        encode=spread("encode"),
        prefill=spread("prefill"),
        step=_divided(decode, generated) if generated else None,
        total=Spread.of(totals),
        audio_seconds=sum(map(len, audio)) / rate,
        peak_bytes=peak,
        placement=transcriber.engine.placement(),
        differences=_differences(transcriber.engine, audio, transcripts, request),
        texts=[each.text for each in transcripts],
        tokens=[[token for segment in each.segments for token in segment.tokens] for each in transcripts],
        versions=_versions(request),
    )


def _transcribe(transcriber: Transcriber, audio: list[npt.NDArray[np.float32]], request: Request) -> list[Transcript]:
    rate = transcriber.engine.sample_rate
    return [
        transcriber.transcribe(
            samples, sample_rate=rate, max_new_tokens=request.new_tokens, ignore_stop=request.new_tokens is not None
        )
        for samples in audio
    ]


def _divided(spread: Spread, divisor: int) -> Spread:
    return Spread(spread.median / divisor, spread.low / divisor, spread.high / divisor)


def _differences(
    engine: Engine, audio: list[npt.NDArray[np.float32]], transcripts: list[Transcript], request: Request
) -> dict[str, Difference]:
    """Run the graphs on the reference's inputs and compare their outputs with the reference's.

    The reference itself writes its inputs and outputs to the file ``request.outputs``.

    Returns:
        The worst difference of each graph role; empty for the reference.
    """
    theirs: Outputs = {}
    if request.reference:
        with np.load(request.reference) as stored:
            theirs = dict(stored)
    ours: Outputs = {}
    differences: dict[str, list[Difference]] = {}
    for index, (samples, transcript) in enumerate(zip(audio[:_COMPARED_FILES], transcripts, strict=False)):
        if not transcript.segments:
            continue  # no speech, so no graph ran
        first = transcript.segments[0]
        start, end = (round(seconds * engine.sample_rate) for seconds in (first.start, first.end))
        tokens = theirs.get(f"{index} tokens", np.array(first.tokens[:_COMPARED_TOKENS], np.int64))
        ours[f"{index} tokens"] = tokens
        for number, probe in enumerate(engine.probes(samples[start:end], tokens.tolist(), SegmentOptions())):
            key = f"{index} {number}"
            fed = _with_reference_inputs(probe, theirs, key)
            ours |= {f"{key} in {name}": array for name, array in fed.feeds.items() if array.size}
            for name, output in zip(probe.outputs, engine.run_probe(fed), strict=True):
                ours[f"{key} out {name}"] = output
                if (other := theirs.get(f"{key} out {name}")) is not None:
                    compared = difference(output, other, choices=name == probe.choice)
                    differences.setdefault(probe.role, []).append(compared)
    if not request.reference:
        np.savez(request.outputs, **ours)  # type: ignore[arg-type]
    return {role: worst(values) for role, values in differences.items()}


def _with_reference_inputs(probe: Probe, theirs: Outputs, key: str) -> Probe:
    """Replace the probe's inputs with the reference's, so that differences of earlier graphs do not add up."""
    feeds = {name: theirs.get(f"{key} in {name}", array) for name, array in probe.feeds.items()}
    return msgspec.structs.replace(probe, feeds=feeds)


def _versions(request: Request) -> dict[str, str]:
    versions = {"onnxruntime": onnxruntime.__version__}
    for text in request.providers:
        plugin = availability(read_provider(text).name).plugin
        if plugin:
            name, _, version = plugin.partition(" ")
            versions[name] = version
    return versions


def main(request: Path, result: Path) -> int:
    """Read a :class:`Request` as JSON, measure it and write :class:`Measured` as JSON.

    Returns:
        0, or 2 after one sentence on standard error.
    """
    try:
        measured = measure(msgspec.json.decode(request.read_bytes(), type=Request))
    except AsrError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    write_atomically(result, msgspec.json.encode(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
