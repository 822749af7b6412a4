"""Child process that runs one system on one recording after another: ``python -m benchmarks.real.child``.

It runs in the project's environment or in that of the other packages (``build/peers``), so it imports only the system,
numpy and the standard library. It reads a job as one line of JSON, loads the system, recognizes the first recording
without counting it, and answers when it is ready. Then each line is a :class:`Turn`, and is answered with the text or
the detected language, the seconds that this took, and the peak resident memory of the process so far.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

RATE = 16_000
WINDOW_SECONDS = 30  # what Whisper's encoder sees at once


class Turn(NamedTuple):
    """One recording: a file of float32 samples at 16 kHz, and its language as ISO code; empty: detect the language."""

    clip: str
    language: str


class Recognizer(Protocol):
    """A loaded system."""

    def text(self, samples: Any, language: str) -> str:
        """Return the text of float32 samples [n] at 16 kHz in a language given by its ISO code."""

    def language(self, samples: Any) -> str | None:
        """Return the ISO code of the detected language; None if there is no speech."""


def main() -> None:
    """Run the job on the first line of standard input, then a turn for each further line."""
    # Libraries may print to standard output, which is for answers only.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value, ensure_ascii=False) + "\n")
        answers.flush()

    job = json.loads(sys.stdin.readline())
    system = LOADERS[job["package"]](job)
    recognize(system, Turn(**job["warm_up"]))
    answer({"ready": True, "versions": {name: version(name) for name in job["versions"]}})
    for line in sys.stdin:
        answer(recognize(system, Turn(**json.loads(line))) | {"peak_bytes": peak_bytes()})


def recognize(system: Recognizer, turn: Turn) -> dict[str, Any]:
    """Recognize one recording, and time it from samples to text or language."""
    samples = np.load(turn.clip)
    began = time.perf_counter()
    result = {"text": system.text(samples, turn.language)} if turn.language else {"language": system.language(samples)}
    return result | {"seconds": time.perf_counter() - began}


def peak_bytes() -> int:
    """Return the peak resident bytes of this process; Linux only, 0 if unknown."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


class Ours:
    """This project's runtime with its defaults: greedy, cut at pauses unless ``vad`` is false."""

    def __init__(self, job: dict[str, Any]) -> None:
        factory = import_module("runtime").Transcriber
        self._transcriber = factory.from_artifact(job["model"], threads=job["threads"], vad=job["options"]["vad"])
        languages = self._transcriber.artifact.manifest.languages
        self._codes = {language.name: language.code for language in languages}

    def text(self, samples: Any, language: str) -> str:
        text: str = self._transcriber.transcribe(samples, language, sample_rate=RATE).text
        return text

    def language(self, samples: Any) -> str | None:
        # There is no call for the language alone; the text is decoded too.
        return self._codes.get(self._transcriber.transcribe(samples, None, sample_rate=RATE).language)


class Transformers:
    """transformers' ``generate``, greedy, with language and task given, window by window."""

    def __init__(self, job: dict[str, Any]) -> None:
        transformers, torch = import_module("transformers"), import_module("torch")
        torch.set_num_threads(job["threads"])
        factory = transformers.WhisperForConditionalGeneration
        self._model = factory.from_pretrained(job["model"], dtype=torch.float32).eval()
        self._features = transformers.WhisperFeatureExtractor(feature_size=self._model.config.num_mel_bins)
        tokenizer = import_module("tokenizers").Tokenizer
        self._tokenizer = tokenizer.from_file(str(Path(job["model"]) / "tokenizer.json"))

    def text(self, samples: Any, language: str) -> str:
        texts = []
        for window in windows(samples):
            ids = self._model.generate(
                self._input(window), language=language, task="transcribe", num_beams=1, do_sample=False
            )
            texts.append(self._tokenizer.decode(ids[0].tolist(), skip_special_tokens=True).strip())
        return " ".join(filter(None, texts))

    def language(self, samples: Any) -> str | None:
        (token,) = self._model.detect_language(self._input(next(windows(samples)))).tolist()
        return str(self._tokenizer.id_to_token(token)).strip("<|>")

    def _input(self, samples: Any) -> Any:
        return self._features(samples, sampling_rate=RATE, return_tensors="pt").input_features


def windows(samples: Any) -> Iterator[Any]:
    """Yield samples [n] in windows of 30 s."""
    step = WINDOW_SECONDS * RATE
    return (samples[start : start + step] for start in range(0, len(samples), step))


class FasterWhisper:
    """faster-whisper with ``options`` of its ``transcribe``."""

    def __init__(self, job: dict[str, Any]) -> None:
        factory = import_module("faster_whisper").WhisperModel
        kind = job["compute_type"]
        self._model = factory(job["model"], device="cpu", compute_type=kind, cpu_threads=job["threads"], num_workers=1)
        self._options = job["options"]
        self._pipeline = self._model
        if "batch_size" in self._options:  # its pipeline for long audio decodes windows of speech together
            self._pipeline = import_module("faster_whisper").BatchedInferencePipeline(self._model)

    def text(self, samples: Any, language: str) -> str:
        segments, _ = self._pipeline.transcribe(samples, language=language, **self._options)
        return "".join(segment.text for segment in segments).strip()

    def language(self, samples: Any) -> str | None:
        return str(self._model.detect_language(samples)[0])


class WhisperCpp:
    """whisper.cpp with ``options`` of pywhispercpp's ``Model``."""

    def __init__(self, job: dict[str, Any]) -> None:
        factory = import_module("pywhispercpp.model").Model
        self._model = factory(job["model"], n_threads=job["threads"], print_progress=False, **job["options"])

    def text(self, samples: Any, language: str) -> str:
        segments = self._model.transcribe(samples, language=language)
        return " ".join(filter(None, (segment.text.strip() for segment in segments)))

    def language(self, samples: Any) -> str | None:
        return str(self._model.auto_detect_language(samples)[0][0])


LOADERS: dict[str, Callable[[dict[str, Any]], Recognizer]] = {
    "asr-deploy": Ours,
    "transformers": Transformers,
    "faster-whisper": FasterWhisper,
    "whisper.cpp": WhisperCpp,
}


if __name__ == "__main__":
    main()
