"""One execution provider measured in a process of its own: ``python -m runtime.bench.provider_run REQUEST RESULT``.

A process each, because peak memory is a process's, because a provider can take its process down, and because two
providers may need two builds of onnxruntime, which cannot be loaded together.
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

# Graphs are compared on the first segment of so many files, on at most so many tokens of its text: enough to see a
# difference, and little to keep (a row of logits is 0.6 MB).
_COMPARED_FILES = 4
_COMPARED_TOKENS = 64

Outputs = dict[str, npt.NDArray[Any]]


def measure(request: Request) -> Measured:
    """Do what was asked.

    Raises:
        AsrError: the provider, the model or the audio is not what it should be.
    """
    began = time.perf_counter()
    transcriber = Transcriber.from_artifact(request.model, provider=request.providers, threads=request.threads)
    load = time.perf_counter() - began
    rate = transcriber.engine.sample_rate
    audio = [load_audio(path, rate) for path in request.audio]
    transcripts = _transcribe(transcriber, audio, request)  # the first run compiles, grows arenas and is not counted
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


def _divided(spread: Spread, by: int) -> Spread:
    return Spread(spread.median / by, spread.low / by, spread.high / by)


def _differences(
    engine: Engine, audio: list[npt.NDArray[np.float32]], transcripts: list[Transcript], request: Request
) -> dict[str, Difference]:
    """Run the graphs on the reference's inputs and compare; the reference leaves its inputs and outputs in a file."""
    theirs: Outputs = {}
    if request.reference:
        with np.load(request.reference) as stored:
            theirs = dict(stored)
    ours: Outputs = {}
    found: dict[str, list[Difference]] = {}
    for index, (samples, transcript) in enumerate(zip(audio[:_COMPARED_FILES], transcripts, strict=False)):
        if not transcript.segments:
            continue  # nobody speaks: no graph ran
        first = transcript.segments[0]
        start, end = (round(at * engine.sample_rate) for at in (first.start, first.end))
        tokens = theirs.get(f"{index} tokens", np.array(first.tokens[:_COMPARED_TOKENS], np.int64))
        ours[f"{index} tokens"] = tokens
        for number, probe in enumerate(engine.probes(samples[start:end], tokens.tolist(), SegmentOptions())):
            key = f"{index} {number}"
            given = _given(probe, theirs, key)
            ours |= {f"{key} in {name}": array for name, array in given.feeds.items() if array.size}
            for name, output in zip(probe.outputs, engine.run_probe(given), strict=True):
                ours[f"{key} out {name}"] = output
                if (other := theirs.get(f"{key} out {name}")) is not None:
                    made = difference(output, other, choices=name == probe.choice)
                    found.setdefault(probe.role, []).append(made)
    if not request.reference:
        np.savez(request.outputs, **ours)  # type: ignore[arg-type]
    return {role: worst(each) for role, each in found.items()}


def _given(probe: Probe, theirs: Outputs, key: str) -> Probe:
    """The probe with the reference's inputs, so that each graph answers for its own difference alone."""
    feeds = {name: theirs.get(f"{key} in {name}", array) for name, array in probe.feeds.items()}
    return msgspec.structs.replace(probe, feeds=feeds)


def _versions(request: Request) -> dict[str, str]:
    found = {"onnxruntime": onnxruntime.__version__}
    for text in request.providers:
        plugin = availability(read_provider(text).name).plugin
        if plugin:
            name, _, version = plugin.partition(" ")
            found[name] = version
    return found


def main(request: Path, result: Path) -> int:
    """Measure and write the result; an error of ours is one sentence on standard error, and exit code 2."""
    try:
        measured = measure(msgspec.json.decode(request.read_bytes(), type=Request))
    except AsrError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    write_atomically(result, msgspec.json.encode(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
