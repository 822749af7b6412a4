"""Synthetic utterances: sentences spoken by espeak-ng, joined up to 16 s, with silence and true times."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from tools.tiny.espeak import Espeak, Mark
from tools.tiny.sentences import Sentence, join, sentence

RATE = 16_000
MAX_SECONDS = 16.0

VOICES = {
    "en": ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-029", "en-gb-x-gbclan"),
    "ru": ("ru",),
    "zh": ("cmn-latn-pinyin",),
}
VARIANTS = (
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "Alex", "Alicia", "Andrea", "Andy",
    "Denis", "Diogo", "Gene", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Mike", "adam", "anika", "antonio", "aunty",
    "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma", "grandpa", "iven", "john", "linda",
    "marcelo", "max", "michel", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby",
    "steph", "travis", "victor", "zac", "klatt", "klatt3",
)  # fmt: skip
# Voice variant of each language that is never used in training.
HELD_OUT_VOICES = {"en": "Michael", "ru": "Annie", "zh": "miguel"}


@dataclass(frozen=True, slots=True)
class Utterance:
    """``samples`` int16 at 16 kHz; marks in seconds from the clip's start."""

    sentence: Sentence
    samples: npt.NDArray[np.int16]
    voice: str
    words: tuple[Mark, ...]
    phonemes: tuple[Mark, ...]


def _shift(marks: tuple[Mark, ...], seconds: float) -> list[Mark]:
    return [Mark(mark.start + seconds, mark.label) for mark in marks]


def _spoken(
    engine: Espeak, text: str, voice: str, prosody: tuple[int, int, int]
) -> tuple[npt.NDArray[np.float32], list[Mark], list[Mark]]:
    speed, pitch, pitch_range = prosody
    speech = engine.synthesize(text, voice, speed=speed, pitch=pitch, pitch_range=pitch_range)
    samples = soxr.resample(speech.samples.astype(np.float32) / 32768, speech.rate, RATE)
    words = [mark for mark in speech.words if mark.label.strip()]
    end = Mark(len(samples) / RATE, "_")
    return samples, words, [*speech.phonemes, end]


def utterance(
    engine: Espeak,
    rng: random.Random,
    language: str,
    *,
    with_context: bool = False,
    joined: bool = False,
    held_out_voice: bool = False,
) -> Utterance:
    """Return a random utterance: one voice, one to five sentences, silence around and between them.

    Args:
        engine: the synthesizer.
        rng: source of all random choices.
        language: its code.
        with_context: add a context with hot words.
        joined: join two to five sentences, up to 16 s.
        held_out_voice: use the voice variant that training does not use.
    """
    variant = HELD_OUT_VOICES[language] if held_out_voice else rng.choice(VARIANTS)
    voice = f"{rng.choice(VOICES[language])}+{variant}"
    prosody = (rng.randint(130, 200), rng.randint(25, 75), rng.randint(30, 70))
    parts: list[Sentence] = []
    pieces: list[npt.NDArray[np.float32]] = [np.zeros(int(rng.uniform(0.05, 0.6) * RATE), np.float32)]
    words: list[Mark] = []
    phonemes: list[Mark] = [Mark(0.0, "_")]
    count = rng.randint(2, 5) if joined else 1
    for index in range(count):
        known = parts[0].listed if parts else ()
        part = sentence(language, rng, with_context=with_context and index == 0, known=known)
        samples, word_marks, phoneme_marks = _spoken(engine, part.text, voice, prosody)
        offset = sum(len(piece) for piece in pieces) / RATE
        if index and offset + len(samples) / RATE > MAX_SECONDS - 0.7:
            break
        parts.append(part)
        words += _shift(tuple(word_marks), offset)
        phonemes += _shift(tuple(phoneme_marks), offset)
        pause = rng.uniform(0.0, 0.6) if index + 1 < count else 0.0
        pieces += [samples, np.zeros(int(pause * RATE), np.float32)]
    pieces.append(np.zeros(int(rng.uniform(0.05, 0.6) * RATE), np.float32))
    audio = np.concatenate(pieces)
    peak = float(np.abs(audio).max()) or 1.0
    return Utterance(
        join(parts), np.round(audio / peak * 0.7 * 32767).astype(np.int16), voice, tuple(words), tuple(phonemes)
    )


def noise(rng: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
    """Return colored noise [count] with root mean square 1, sometimes with mains hum or clicks."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequencies = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 20.0)
    audio = np.fft.irfft(spectrum * frequencies ** -rng.uniform(0.0, 1.2), count)
    audio /= audio.std() + 1e-9
    kind = rng.random()
    if kind < 0.25:
        hum = rng.choice((50, 60, 100, 120)) * np.arange(count) / RATE
        audio += rng.uniform(0.3, 2.0) * np.sin(2 * np.pi * hum)
    elif kind < 0.5:
        clicks = rng.integers(0, count, rng.integers(1, 12))
        audio[clicks] += rng.uniform(5, 40, len(clicks))
    scaled: npt.NDArray[np.float32] = (audio / (audio.std() + 1e-9)).astype(np.float32)
    return scaled


def augment(samples: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return samples with a random gain, and in 60 % of cases with noise 8 to 40 dB below the speech."""
    samples = samples * float(10 ** (rng.uniform(-22, 2) / 20))
    if rng.random() < 0.6:
        level = float(np.sqrt(np.mean(samples**2)) + 1e-6) * 10 ** (-rng.uniform(8, 40) / 20)
        samples = samples + noise(rng, len(samples)) * level
    clipped: npt.NDArray[np.float32] = np.clip(samples, -1.0, 1.0, dtype=np.float32)
    return clipped


def noise_only(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a clip of 0.3 to 8 s without speech, from digital silence to loud noise."""
    count = int(rng.uniform(0.3, 8.0) * RATE)
    if rng.random() < 0.1:
        return np.zeros(count, np.float32)
    level = 10 ** (rng.uniform(-70, -12) / 20)
    clipped: npt.NDArray[np.float32] = np.clip(noise(rng, count) * level, -1, 1, dtype=np.float32)
    return clipped
