"""The sample recordings of ``tests/data``: held-out utterances with transcripts and true word times."""

from __future__ import annotations

import json
import random
from pathlib import Path

import soundfile

from tests.tiny.dataset import SILENT
from tests.tiny.espeak import Espeak
from tests.tiny.sentences import LANGUAGES
from tests.tiny.synth import RATE, Utterance, utterance

SEED = 9100
EACH = 4


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
    for code, name in LANGUAGES.items():
        for number in range(1, EACH + 1):
            made = utterance(engine, rng, code, with_context=number == 4, joined=number == 3, unheard=number == 2)
            while number == 4 and not made.sentence.hot:  # the context must decide something
                made = utterance(engine, rng, code, with_context=True)
            file = f"{code}-{number}.wav"
            soundfile.write(out / file, made.samples, RATE, subtype="PCM_16")
            index.append(
                {
                    "file": file,
                    "language": name,
                    "text": made.sentence.text,
                    "context": made.sentence.context,
                    "voice": made.voice,
                    "words": word_times(made),
                }
            )
    (out / "index.json").write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
