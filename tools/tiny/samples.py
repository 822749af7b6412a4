"""Recordings in folders, each with an ``index.json`` of what is said in which file.

``tests/data`` holds samples with true word times, ``tests/data/evaluation`` a set to count errors on. No seed of theirs
is one that a corpus of training or of :mod:`tools.tiny.evaluate` is made from. The sentences are of the same small
domain, so a short one may well have been said in training too.
"""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from quantize.output_folder import appearing
from tools.tiny.dataset import SILENT, Item
from tools.tiny.espeak import Espeak
from tools.tiny.ogg import with_serial
from tools.tiny.sentences import LANGUAGES
from tools.tiny.synth import RATE, Utterance, utterance

SEED = 9100
EACH = 4
EVALUATION_SEED = 9200
EVALUATION_EACH = 20
EVALUATION_SECONDS = 8.0
# libsndfile's scale, 0 the best quality and 1 the smallest file.
COMPRESSION = 0.6


def word_times(made: Utterance) -> list[dict[str, str | float]]:
    """Words with start and end in seconds: a word ends where the next begins or where a pause begins before that."""
    pauses = [mark.start for mark in made.phonemes if mark.label in SILENT and mark.label != "_|"]
    ends = [*(mark.start for mark in made.words[1:]), len(made.samples) / RATE]
    times: list[dict[str, str | float]] = []
    for word, following in zip(made.words, ends, strict=True):
        end = min([following, *(pause for pause in pauses if pause > word.start)])
        times.append({"word": word.label, "start": round(word.start, 3), "end": round(end, 3)})
    return times


def write_samples(out: Path) -> None:
    """Four utterances a language: one in the unheard voice, one joined, one with hot words that decide a spelling."""
    out.mkdir(parents=True, exist_ok=True)
    engine, rng = Espeak(), random.Random(SEED)
    index = []
    for code in LANGUAGES:
        for number in range(1, EACH + 1):
            made = utterance(engine, rng, code, with_context=number == 4, joined=number == 3, unheard=number == 2)
            while number == 4 and not made.sentence.hot:  # the context must decide something
                made = utterance(engine, rng, code, with_context=True)
            file = f"{code}-{number}.wav"
            soundfile.write(out / file, made.samples, RATE, subtype="PCM_16")
            index.append(_entry(file, code, made.sentence.text, made.sentence.context, made.voice))
            index[-1]["words"] = word_times(made)
    _write_index(out, index)


def write_evaluation(out: Path, each: int = EVALUATION_EACH) -> None:
    """``each`` utterances a language without contexts, none longer than 8 s: a third in the unheard voice, some joined.

    Ogg Vorbis, because they are bundled. Made by a process of its own, so that the files do not depend on what this one
    spoke before (see :func:`tools.tiny.dataset.generate`).
    """
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        spoken = pool.submit(_evaluation, each).result()
    index = []
    for number, made in enumerate(spoken):
        code = made.sentence.language
        file = f"{code}-{number % each + 1:02d}.ogg"
        soundfile.write(out / file, made.samples, RATE, format="OGG", subtype="VORBIS", compression_level=COMPRESSION)
        (out / file).write_bytes(with_serial((out / file).read_bytes(), number))
        index.append(_entry(file, code, made.sentence.text, "", made.voice))
    _write_index(out, index)


def _evaluation(each: int) -> list[Utterance]:
    engine, rng = Espeak(), random.Random(EVALUATION_SEED)
    made = []
    for index in range(each * len(LANGUAGES)):
        code = list(LANGUAGES)[index // each]
        made.append(_short(engine, rng, code, joined=index % 4 == 3, unheard=index % 3 == 1))
    return made


def _short(engine: Espeak, rng: random.Random, code: str, *, joined: bool, unheard: bool) -> Utterance:
    while True:
        made = utterance(engine, rng, code, joined=joined, unheard=unheard)
        if len(made.samples) <= EVALUATION_SECONDS * RATE:
            return made


def write_folder(items: Sequence[Item], clips: Sequence[npt.NDArray[np.float32]], out: Path) -> None:
    """Write clips (16 kHz) and what is said in them to the new folder ``out``, for ``python -m runtime evaluate``.

    As WAV of 32-bit floats, which holds the clips as they are: 16 bits would add noise of their own to the quiet ones,
    and a model could hear another word there than in the clip itself.

    Raises:
        OutputError: ``out`` exists.
    """
    with appearing(out) as work:
        index = []
        for number, (item, clip) in enumerate(zip(items, clips, strict=True), 1):
            file = f"{item.language}-{number:03d}.wav"
            soundfile.write(work / file, clip, RATE, subtype="FLOAT")
            index.append(_entry(file, item.language, item.text, item.context, item.voice))
        _write_index(work, index)


def _entry(file: str, code: str, text: str, context: str, voice: str) -> dict[str, Any]:
    return {"file": file, "language": LANGUAGES[code], "text": text, "context": context, "voice": voice}


def _write_index(folder: Path, index: list[dict[str, Any]]) -> None:
    (folder / "index.json").write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
