"""onnx-asr or sherpa-onnx in a process of its own: ``PEERS_PYTHON -m benchmarks.peer_child``.

It runs in the peers' own environment, so it imports them, numpy and the standard library alone. What it reads and says
is that of :mod:`benchmarks.family_child`.
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

# Texts and the number of tokens of some clips.
Heard = tuple[list[str], int]
Recognize = Callable[[Sequence[Any]], Heard]

RATE = 16_000


def main() -> None:
    """Do the job that is on the first line of standard input."""
    job = json.loads(sys.stdin.readline())
    os.chdir(job["folder"])  # sherpa-onnx reads graphs into memory: weights beside them are looked for here
    recognize = LOADERS[job["package"]](job)
    clips = [np.load(path) for path in job["clips"]]
    if job["ask"] == "cold":
        say({"texts": recognize(clips)[0]})
    elif job["ask"] == "texts":
        say({"texts": WAYS[job["way"]](recognize, clips)[0]})
    elif job["ask"] == "way":
        say({"way": faster_way(recognize, clips)})
    else:
        run = WAYS[job["way"]]
        run(recognize, clips)
        say({"ready": True})
        for _ in sys.stdin:
            began = time.perf_counter()
            texts, tokens = run(recognize, clips)
            total = time.perf_counter() - began
            say({"total": total, "tokens": tokens, "texts": texts, "resident_bytes": peak_bytes()})


def faster_way(recognize: Recognize, clips: Sequence[Any]) -> str:
    """Whether clips are faster one by one or together, once each after a warm-up."""
    recognize(clips[:1])
    taken = {}
    for way, run in WAYS.items():
        began = time.perf_counter()
        run(recognize, clips)
        taken[way] = time.perf_counter() - began
    return min(taken, key=lambda way: taken[way])


def one_by_one(recognize: Recognize, clips: Sequence[Any]) -> Heard:
    """Each clip in a call of its own."""
    heard = [recognize([clip]) for clip in clips]
    return [text for texts, _ in heard for text in texts], sum(tokens for _, tokens in heard)


def together(recognize: Recognize, clips: Sequence[Any]) -> Heard:
    """All clips in one call."""
    return recognize(clips)


WAYS: dict[str, Callable[[Recognize, Sequence[Any]], Heard]] = {"one by one": one_by_one, "together": together}


def peak_bytes() -> int:
    """Peak resident memory of this process; Linux alone tells it here."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _onnx_asr(job: dict[str, Any]) -> Recognize:
    onnx_asr, onnxruntime = import_module("onnx_asr"), import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    model = onnx_asr.load_model(job["kind"], job["folder"], sess_options=options, providers=["CPUExecutionProvider"])
    if job["kind"] == "whisper":
        return _whisper(model, job)
    timed = model.with_timestamps()

    def recognize(clips: Sequence[Any]) -> Heard:
        found = timed.recognize(list(clips), sample_rate=RATE)
        return [each.text for each in found], sum(len(each.tokens) for each in found)

    return recognize


def _whisper(model: Any, job: dict[str, Any]) -> Recognize:
    """With as many tokens a clip as are asked for: by the bound that its decoding loop takes, and no end before."""
    decoding, counted = model.asr._decoding, [0]
    forced = job["new_tokens"]
    if forced:
        model.asr._eos_token_id = -1

    @functools.wraps(decoding)
    def bounded(audio: Any, tokens: Any, most: int = 448) -> Any:
        found = decoding(audio, tokens, tokens.shape[1] + forced if forced else most)
        counted[0] += found.shape[0] * (found.shape[1] - tokens.shape[1])
        return found

    model.asr._decoding = bounded

    def recognize(clips: Sequence[Any]) -> Heard:
        counted[0] = 0
        texts = model.recognize(list(clips), sample_rate=RATE, language=job["language"])
        return list(texts), counted[0]

    return recognize


def _sherpa(job: dict[str, Any]) -> Recognize:
    made = import_module("sherpa_onnx").OfflineRecognizer
    if job["kind"] == "nemo-conformer-tdt":
        recognizer = made.from_transducer(
            "encoder-model.onnx",
            "decoder.onnx",
            "joiner.onnx",
            "tokens.txt",
            num_threads=job["threads"],
            feature_dim=128,
            model_type="nemo_transducer",
        )
    else:
        recognizer = made.from_nemo_ctc("v3_ctc.onnx", "tokens.txt", num_threads=job["threads"], feature_dim=64)

    def recognize(clips: Sequence[Any]) -> Heard:
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


def say(what: dict[str, Any]) -> None:
    """A line of JSON on standard output."""
    sys.stdout.write(json.dumps(what, ensure_ascii=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
