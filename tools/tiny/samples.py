"""Folders of recordings, each with an ``index.json`` of the texts.

``tests/data`` holds samples with true word times, ``tests/data/evaluation`` a set to count errors on. Their seeds are
not those of the training corpora and of :mod:`tools.tiny.evaluate`. The sentences are of the same small domain, so a
short one may also occur in training.
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
# On libsndfile's scale from 0 (best quality) to 1 (smallest file).
COMPRESSION = 0.6


def word_times(spoken: Utterance) -> list[dict[str, str | float]]:
    """Return words with start and end in seconds; a word ends where a pause or the next word begins."""
    pauses = [mark.start for mark in spoken.phonemes if mark.label in SILENT and mark.label != "_|"]
    ends = [*(mark.start for mark in spoken.words[1:]), len(spoken.samples) / RATE]
    times: list[dict[str, str | float]] = []
    for word, following in zip(spoken.words, ends, strict=True):
        end = min([following, *(pause for pause in pauses if pause > word.start)])
        times.append({"word": word.label, "start": round(word.start, 3), "end": round(end, 3)})
    return times


def write_samples(out: Path) -> None:
    """Write four utterances per language: one in the held-out voice, one joined, one with hot words for a spelling."""
    out.mkdir(parents=True, exist_ok=True)
    engine, rng = Espeak(), random.Random(SEED)
    index = []
    for code in LANGUAGES:
        for number in range(1, EACH + 1):
            spoken = utterance(
                engine, rng, code, with_context=number == 4, joined=number == 3, held_out_voice=number == 2
            )
            while number == 4 and not spoken.sentence.hot:  # the context must decide a spelling
                spoken = utterance(engine, rng, code, with_context=True)
            file = f"{code}-{number}.wav"
            soundfile.write(out / file, spoken.samples, RATE, subtype="PCM_16")
            index.append(_entry(file, code, spoken.sentence.text, spoken.sentence.context, spoken.voice))
            index[-1]["words"] = word_times(spoken)
    _write_index(out, index)


def write_evaluation(out: Path, each: int = EVALUATION_EACH) -> None:
    """Write ``each`` utterances per language without contexts, up to 8 s, a third in the held-out voice, some joined.

    The files are Ogg Vorbis, since they are part of the package. Another process makes them, so that they do not depend
    on what this one has synthesized (see :func:`tools.tiny.dataset.generate`).
    """
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        utterances = pool.submit(_evaluation, each).result()
    index = []
    for number, spoken in enumerate(utterances):
        code = spoken.sentence.language
        file = f"{code}-{number % each + 1:02d}.ogg"
        soundfile.write(out / file, spoken.samples, RATE, format="OGG", subtype="VORBIS", compression_level=COMPRESSION)
        (out / file).write_bytes(with_serial((out / file).read_bytes(), number))
        index.append(_entry(file, code, spoken.sentence.text, "", spoken.voice))
    _write_index(out, index)


def _evaluation(each: int) -> list[Utterance]:
    engine, rng = Espeak(), random.Random(EVALUATION_SEED)
    utterances = []
    for index in range(each * len(LANGUAGES)):
        code = list(LANGUAGES)[index // each]
        utterances.append(_short(engine, rng, code, joined=index % 4 == 3, held_out_voice=index % 3 == 1))
    return utterances


def _short(engine: Espeak, rng: random.Random, code: str, *, joined: bool, held_out_voice: bool) -> Utterance:
    """Return the first random utterance that is not longer than 8 s."""
    while True:
        spoken = utterance(engine, rng, code, joined=joined, held_out_voice=held_out_voice)
        if len(spoken.samples) <= EVALUATION_SECONDS * RATE:
            return spoken


def write_folder(items: Sequence[Item], clips: Sequence[npt.NDArray[np.float32]], out: Path) -> None:
    """Write clips (16 kHz) and their texts to the new folder ``out``, for ``python -m runtime evaluate``.

    The files are WAV with 32-bit floats, which store the clips exactly: 16 bits would add noise to the quiet ones, and
    that can change the transcript.

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
