"""Child process that runs onnx-asr or sherpa-onnx: ``build/peers/bin/python -m benchmarks.peer_child``.

It runs in the environment of the other packages, so it imports only them, numpy and the standard library. It reads and
answers as :mod:`benchmarks.family_child` does.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

# Texts and total number of tokens.
Recognized = tuple[list[str], int]
Recognize = Callable[[Sequence[Any]], Recognized]

RATE = 16_000


def main() -> None:
    """Run the job on the first line of standard input."""
    job = json.loads(sys.stdin.readline())
    os.chdir(job["folder"])  # sherpa-onnx reads graphs into memory and looks for their weights in the current folder
    recognize = LOADERS[job["package"]](job)
    clips = [np.load(path) for path in job["clips"]]
    if job["ask"] == "cold":
        answer({"texts": recognize(clips)[0]})
    elif job["ask"] == "texts":
        answer({"texts": WAYS[job["way"]](recognize, clips)[0]})
    elif job["ask"] == "way":
        answer({"way": faster_way(recognize, clips)})
    else:
        run = WAYS[job["way"]]
        run(recognize, clips)
        answer({"ready": True})
        for _ in sys.stdin:
            began = time.perf_counter()
            texts, tokens = run(recognize, clips)
            total = time.perf_counter() - began
            answer({"total": total, "tokens": tokens, "texts": texts, "resident_bytes": peak_bytes()})


def faster_way(recognize: Recognize, clips: Sequence[Any]) -> str:
    """Return the faster way of :data:`WAYS`, each timed once after a warm-up."""
    recognize(clips[:1])
    taken = {}
    for way, run in WAYS.items():
        began = time.perf_counter()
        run(recognize, clips)
        taken[way] = time.perf_counter() - began
    return min(taken, key=lambda way: taken[way])


def one_by_one(recognize: Recognize, clips: Sequence[Any]) -> Recognized:
    """Recognize each clip in its own call."""
    results = [recognize([clip]) for clip in clips]
    return [text for texts, _ in results for text in texts], sum(tokens for _, tokens in results)


def together(recognize: Recognize, clips: Sequence[Any]) -> Recognized:
    """Recognize all clips in one call."""
    return recognize(clips)


WAYS: dict[str, Callable[[Recognize, Sequence[Any]], Recognized]] = {"one by one": one_by_one, "together": together}


def peak_bytes() -> int:
    """Return the peak resident bytes of this process; Linux only, 0 if unknown."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _onnx_asr(job: dict[str, Any]) -> Recognize:
    onnx_asr, onnxruntime = import_module("onnx_asr"), import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    model = onnx_asr.load_model(job["kind"], job["folder"], sess_options=options, providers=["CPUExecutionProvider"])
    if job["kind"] == "whisper":
        return _whisper(model, job)
    timed = model.with_timestamps()

    def recognize(clips: Sequence[Any]) -> Recognized:
        results = timed.recognize(list(clips), sample_rate=RATE)
        return [each.text for each in results], sum(len(each.tokens) for each in results)

    return recognize


def _whisper(model: Any, job: dict[str, Any]) -> Recognize:
    """Force the number of tokens of a clip, if the job sets it: bound the decoding loop and disable the end token."""
    decoding, counted = model.asr._decoding, [0]
    forced = job["new_tokens"]
    if forced:
        model.asr._eos_token_id = -1

    @functools.wraps(decoding)
    def bounded(audio: Any, tokens: Any, max_length: int = 448) -> Any:
        output = decoding(audio, tokens, tokens.shape[1] + forced if forced else max_length)
        counted[0] += output.shape[0] * (output.shape[1] - tokens.shape[1])
        return output

    model.asr._decoding = bounded

    def recognize(clips: Sequence[Any]) -> Recognized:
        counted[0] = 0
        texts = model.recognize(list(clips), sample_rate=RATE, language=job["language"])
        return list(texts), counted[0]

    return recognize


def _sherpa(job: dict[str, Any]) -> Recognize:
    factory = import_module("sherpa_onnx").OfflineRecognizer
    if job["kind"] == "nemo-conformer-tdt":
        recognizer = factory.from_transducer(
            "encoder-model.onnx",
            "decoder.onnx",
            "joiner.onnx",
            "tokens.txt",
            num_threads=job["threads"],
            feature_dim=128,
            model_type="nemo_transducer",
        )
    else:
        recognizer = factory.from_nemo_ctc("v3_ctc.onnx", "tokens.txt", num_threads=job["threads"], feature_dim=64)

    def recognize(clips: Sequence[Any]) -> Recognized:
        streams = []
        for clip in clips:
            stream = recognizer.create_stream()
            stream.accept_waveform(RATE, clip)
            streams.append(stream)
        recognizer.decode_streams(streams)
        results = [stream.result for stream in streams]
        return [result.text for result in results], sum(len(result.tokens) for result in results)

    return recognize


LOADERS: dict[str, Callable[[dict[str, Any]], Recognize]] = {"onnx-asr": _onnx_asr, "sherpa-onnx": _sherpa}


def answer(value: dict[str, Any]) -> None:
    """Write a line of JSON to standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
