"""Time, memory and size of all recipes at the real sizes, with random weights, on whose values speed does not depend.

Recipes are timed in turns, round by round, in one process; memory is measured in one process for each artifact.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile

from benchmarks.artifacts import FLOAT, RECIPES, Run, quantized, random_weights
from export.compare import speech
from runtime.decoding.kv_rows import CausalDecoder
from runtime.features.log_mel import LogMelConfig, log_mel
from runtime.model.artifact import Artifact, open_artifact
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import make_session

log = logging.getLogger("benchmarks")

# fp16 is for GPUs: on a CPU every node is wrapped in casts, so it is not timed.
TIMED = (FLOAT, *(recipe for recipe in RECIPES if recipe != "fp16"))
ROUNDS, STEPS = 9, 30
PROMPT, ENCODER_SECONDS = 400, 32
MEMORY_SECONDS, MEMORY_TOKENS = 30, 100
_LARGE = ("int4",)


def measure(work: Path) -> dict[str, Any]:
    """Return for 0.6B by recipe: bytes, relative error, cost of quantizing, median stage times, resident memory."""
    parent, rows = _quantize_all("0.6b", work, RECIPES)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # frees its memory when it ends
        medians = pool.submit(_time, {recipe: parent.parent / recipe for recipe in TIMED}).result()
    for recipe, stages in medians.items():
        rows[recipe] |= stages
    for recipe in TIMED:
        rows[recipe]["resident_bytes"] = _memory(parent.parent / recipe)
        log.info("%s: %s", recipe, rows[recipe])
    return rows


def measure_large(work: Path) -> dict[str, Any]:
    """Return for 1.7B in int4: bytes, resident memory, cost of quantizing."""
    parent, rows = _quantize_all("1.7b", work, _LARGE)
    for recipe in _LARGE:
        rows[recipe]["resident_bytes"] = _memory(parent.parent / recipe)
    return rows


def _quantize_all(size: str, work: Path, recipes: tuple[str, ...]) -> tuple[Path, dict[str, Any]]:
    """Return the float32 artifact, and a row for it and each recipe.

    Time and memory of quantizing are stored beside the artifacts.
    """
    folder = work / size
    parent = random_weights(size, folder)
    rows: dict[str, Any] = {FLOAT: {"bytes": open_artifact(parent).size}}
    for recipe in recipes:
        record = folder / f"{recipe}.json"
        if not record.exists():  # an earlier run was interrupted, so the cost of quantizing is unknown
            shutil.rmtree(folder / recipe, ignore_errors=True)
        out, run = quantized(parent, recipe)
        if run:
            record.write_text(json.dumps({"seconds": run.seconds, "peak_bytes": run.peak_bytes}))
        taken = Run(**json.loads(record.read_text()))
        artifact = open_artifact(out)
        quantization = artifact.manifest.quantization
        rows[recipe] = {
            "bytes": artifact.size,
            "relative_error": quantization.gate.relative_error if quantization else {},
            "quantize_seconds": taken.seconds,
            "quantize_peak_bytes": taken.peak_bytes,
        }
    return parent, rows


def _time(artifacts: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Return the median seconds of encoder, prefill and step of each artifact, measured in turns."""
    stages = {recipe: _stages(open_artifact(path)) for recipe, path in artifacts.items()}
    taken: dict[str, dict[str, list[float]]] = {recipe: {} for recipe in stages}
    for number in range(ROUNDS + 1):
        for recipe, runs in stages.items():
            for stage, call in runs.items():
                for _ in range(STEPS if stage == "step" else 1):
                    began = time.perf_counter()
                    call()
                    if number:  # the first round warms up
                        taken[recipe].setdefault(stage, []).append(time.perf_counter() - began)
        log.info("round %d of %d", number, ROUNDS)
    return {
        recipe: {stage: statistics.median(values) for stage, values in by_stage.items()}
        for recipe, by_stage in taken.items()
    }


def _stages(artifact: Artifact) -> dict[str, Callable[[], object]]:
    """Return the calls to time: encoder over 32 s, prefill of 400 tokens, one step after it."""
    manifest = artifact.manifest
    encoder = make_session(artifact.graph_path("encoder"), ProviderSpec())
    parameters = manifest.parameters
    decoder = CausalDecoder(
        make_session(artifact.graph_path("decoder"), ProviderSpec()),
        manifest.graphs["decoder"],
        audio_id=parameters["audio_pad_id"],
        context_length=parameters["context_length"],
    )
    features, lengths = _windows(manifest.front_end, parameters["window_frames"])
    calls = [  # two windows a call, as in the runtime
        {"features": features[start : start + 2], "lengths": lengths[start : start + 2]}
        for start in range(0, len(lengths), 2)
    ]
    rows = np.concatenate([encoder.run(None, each)[0] for each in calls])
    audio = rows.reshape(-1, parameters["hidden_size"])[: PROMPT - 15]
    prompt = [*[parameters["audio_pad_id"]] * len(audio), *range(100, 100 + PROMPT - len(audio))]
    return {
        "encode": lambda: [encoder.run(None, each) for each in calls],
        "prefill": lambda: decoder.prefill([prompt], audio, (ROUNDS + 1) * STEPS),
        "step": lambda: decoder.step([100]),
    }


def _windows(front_end: dict[str, Any], width: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return features [4, mels, 800] of 32 s of speech, and the frames of each window [4]."""
    mel = log_mel(speech(ENCODER_SECONDS), msgspec.convert(front_end, LogMelConfig))
    count = mel.shape[1] // width
    windows = mel[:, : count * width].reshape(len(mel), count, width).transpose(1, 0, 2)
    return np.ascontiguousarray(windows), np.full(count, width, np.int64)


_PEAK = """
import sys
from runtime import Transcriber
from runtime.host.memory import peak_resident_bytes
transcriber = Transcriber.from_artifact(sys.argv[1])
transcriber.transcribe(sys.argv[2], max_new_tokens=int(sys.argv[3]), ignore_stop=True)
print(peak_resident_bytes())
"""


def _memory(model: Path) -> int:
    """Return the peak resident bytes of a process that transcribes 30 s at batch 1 with 100 forced tokens."""
    clip = model.parent / "clip.wav"
    soundfile.write(clip, speech(MEMORY_SECONDS), 16_000)
    command = [sys.executable, "-c", _PEAK, str(model), str(clip), str(MEMORY_TOKENS)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(process.stdout)
