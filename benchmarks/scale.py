"""Time and memory by length of audio and by number of files, and cold starts."""

from __future__ import annotations

import logging
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import soundfile

from benchmarks.artifacts import quantized, random_weights
from export.compare import speech
from tests.conftest import ARTIFACT, DATA

log = logging.getLogger("benchmarks")

RATE = 16_000
MINUTES = (1, 10, 60)
TOKENS_A_SECOND = 3
FILES, FIRST = 200, 20
HOURS = 3
STARTS = 7
COLD_SECONDS, COLD_TOKENS = 2, 4


def measure(work: Path) -> dict[str, Any]:
    """Measure 1 to 60 minutes at 0.6B, 3 hours and 200 files with the small model, cold starts of int8 and int4."""
    parent = random_weights("0.6b", work / "0.6b")
    models = {recipe: quantized(parent, recipe)[0] for recipe in ("int8", "int4")}
    return {
        "minutes": {str(count): _minutes(work, models["int8"], count) for count in MINUTES},
        "hours": {str(count): _hours(work, count) for count in (1 / 60, HOURS)},
        "files": child(_MANY_FILES, ARTIFACT, FILES, FIRST, DATA),
        "cold_starts": {recipe: _cold_starts(work, model) for recipe, model in models.items()},
    }


# Runs in its own process: seconds and peak memory of one file, with forced tokens for each of its segments. The first
# twenty seconds of the file are transcribed before, so that the weights have been read once.
_ONE_FILE = """
import json, sys, time
import soundfile
from runtime import Transcriber
from runtime.host.memory import peak_resident_bytes
model, clip, tokens = sys.argv[1:]
transcriber = Transcriber.from_artifact(model)
forced = {"max_new_tokens": int(tokens), "ignore_stop": True} if int(tokens) else {}
beginning, rate = soundfile.read(clip, frames=20 * 16_000, dtype="float32")
transcriber.transcribe(beginning, sample_rate=rate, **forced)
began = time.perf_counter()
transcript = transcriber.transcribe(clip, **forced)
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "duration": transcript.duration,
    "segments": len(transcript.segments),
    "tokens": transcript.tokens.generated,
    "peak_bytes": peak_resident_bytes(),
}))
"""
_MANY_FILES = """
import json, sys
from itertools import cycle, islice
from pathlib import Path
from runtime import Transcriber
from runtime.host.memory import resident_bytes
model, count, first, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
transcriber = Transcriber.from_artifact(model)
resident = []
for file in islice(cycle(sorted(folder.glob("*.wav"))), count):
    transcriber.transcribe(file)
    resident.append(resident_bytes())
print(json.dumps({"files": count, "first": first, "first_bytes": resident[first - 1], "last_bytes": resident[-1]}))
"""


def child(code: str, *arguments: object) -> dict[str, Any]:
    """Run Python code with arguments in its own process; return the JSON that it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = msgspec.json.decode(process.stdout)
    log.info("%s", answer)
    return answer


def recording(work: Path, seconds: float) -> Path:
    """Return a WAV file with ``seconds`` of speech, written minute by minute if it does not exist."""
    path = work / f"speech-{seconds:g}.wav"
    if not path.exists():
        minute = speech(60)
        with soundfile.SoundFile(path, "w", RATE, 1) as out:
            left = int(seconds * RATE)
            while left:
                out.write(minute[:left])
                left -= min(left, len(minute))
    return path


def _minutes(work: Path, model: Path, count: int) -> dict[str, Any]:
    """Return the median of three runs over ``count`` minutes; one run for the longest, which averages by itself."""
    path = recording(work, 60 * count)
    # Segments have similar lengths, so each gets the same share of three tokens a second.
    tokens = round(TOKENS_A_SECOND * 60 / _segments_a_minute(path))
    runs = [child(_ONE_FILE, model, path, tokens) for _ in range(3 if count < MINUTES[-1] else 1)]
    middle = statistics.median(run["seconds"] for run in runs)
    return runs[0] | {"seconds": middle, "tokens_a_segment": tokens}


def _segments_a_minute(path: Path) -> float:
    from runtime.audio import open_audio
    from runtime.audio.segmentation import speech_pieces
    from runtime.engines.base import DEFAULT_SEGMENT_SECONDS

    with open_audio(path, RATE) as reader:
        count = sum(1 for _ in speech_pieces(reader.blocks(), RATE, DEFAULT_SEGMENT_SECONDS))
    return 60 * count / float(soundfile.info(path).duration)


def _hours(work: Path, hours: float) -> dict[str, Any]:
    """Transcribe a long file with the small model, whose texts have their natural lengths."""
    return child(_ONE_FILE, ARTIFACT, recording(work, 3600 * hours), 0)


def _cold_starts(work: Path, model: Path) -> dict[str, Any]:
    """Time process start to first text of a short clip, with and without prepacked graphs, in turns."""
    clip = work / "cold.wav"
    soundfile.write(clip, speech(COLD_SECONDS).astype(np.float32), RATE)
    prepacked = work / "prepared"
    subprocess.run(
        [sys.executable, "-m", "runtime", "prepare", "--model", str(model), "--out", str(prepacked)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    folders = {"plain": work / "nothing-prepared", "prepared": prepacked}
    taken: dict[str, list[float]] = {way: [] for way in folders}
    for number in range(STARTS + 1):
        for way, folder in folders.items():
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", _COLD, str(model), str(clip), str(COLD_TOKENS)],
                check=True,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"ASR_DEPLOY_PREPARED": str(folder)},
            )
            if number:  # the first of each fills the page cache
                taken[way].append(time.perf_counter() - began)
    log.info("%s: %s", model.name, taken)
    return {way: {"median": statistics.median(each), "all": sorted(each)} for way, each in taken.items()}


# Does what `python -m runtime transcribe` does, with forced tokens of a first word, including the end of the process.
_COLD = """
import os, sys
import runtime.__main__
from runtime import Transcriber
model, clip, tokens = sys.argv[1:]
text = Transcriber.from_artifact(model).transcribe(clip, max_new_tokens=int(tokens), ignore_stop=True).text
sys.stdout.write(text + chr(10))
sys.stdout.flush()
os._exit(0)
"""
