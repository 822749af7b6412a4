"""Audio files with damage: good recordings of every format, mutated by a seed.

A seed always makes the same file, with the same versions of the encoders. :mod:`tests.hostile.damaged` reads them.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import soundfile

from tests.conftest import DATA, REPOSITORY
from tests.helpers.recordings import (
    RATE,
    encoded,
    sound,
    tracks,
    wav_chunks,
    without_end_of_stream,
    without_xing,
)

_SECONDS = 1.2
# Values that lengths and counts in headers are set to.
_LENGTHS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# Headers are shorter than this, so that half of all changes lie in one.
_HEADER = 400


class Damaged(NamedTuple):
    """A damaged file: its format and damage, and its bytes."""

    kind: str
    data: bytes


@cache
def _speech(rate: int = RATE) -> np.ndarray:
    samples, original = soundfile.read(DATA / "en-1.wav", dtype="float32")
    positions = np.arange(round(_SECONDS * rate)) * original / rate
    resampled: np.ndarray = np.interp(positions, np.arange(len(samples)), samples).astype(np.float32)
    return resampled


def _encoded(format: str, codec: str, rate: int = RATE, **options: object) -> bytes:
    return encoded(_speech(rate), format, codec, rate=rate, **options)  # type: ignore[arg-type]


def _stored(format: str, subtype: str | None = None, channels: int = 1, scale: float = 1.0) -> bytes:
    samples = _speech() * scale
    return sound(np.stack([samples] * channels, 1) if channels > 1 else samples, format, subtype)


FORMATS: dict[str, Callable[[], bytes]] = {
    "wav": partial(_stored, "WAV", channels=2),
    "wav of floats": partial(_stored, "WAV", "FLOAT", scale=32768.0),
    "wav of mu-law": partial(_stored, "WAV", "ULAW"),
    "wav of adpcm": partial(_stored, "WAV", "MS_ADPCM"),
    "wav of chunks": lambda: wav_chunks(_speech(), 3),
    "wav of g722": partial(_encoded, "wav", "g722"),
    "rf64": partial(_stored, "RF64"),
    "w64": partial(_stored, "W64"),
    "aiff": partial(_stored, "AIFF"),
    "au": partial(_stored, "AU"),
    "caf": partial(_stored, "CAF"),
    "caf of alac": partial(_encoded, "caf", "alac"),
    "flac": partial(_stored, "FLAC", channels=2),
    "flac of unknown length": partial(_encoded, "flac", "flac", pipe=True),
    "vorbis": partial(_stored, "OGG", "VORBIS"),
    "opus": partial(_stored, "OGG", "OPUS"),
    "opus without end": lambda: without_end_of_stream(_stored("OGG", "OPUS")),
    "ogg of two links": lambda: _stored("OGG", "OPUS") + _stored("OGG", "VORBIS"),
    "ogg flac": partial(_encoded, "ogg", "flac"),
    "speex": lambda: (REPOSITORY / "tests" / "formats" / "speech.spx").read_bytes(),
    "mp3": partial(_stored, "MP3"),
    "mp3 without xing": lambda: without_xing(_stored("MP3")),
    "joined mp3": lambda: _stored("MP3") + _stored("MP3"),
    "mp2": partial(_encoded, "mp2", "mp2"),
    "aac": partial(_encoded, "adts", "aac"),
    "m4a": partial(_encoded, "mp4", "aac", start=0.5),
    "mp4 of fragments": partial(_encoded, "mp4", "aac", options={"movflags": "frag_keyframe+empty_moov"}),
    "mov": partial(_encoded, "mov", "pcm_s16le"),
    "matroska": lambda: tracks([(_speech(), 0.0), (_speech(), 1.0)], "matroska", "flac"),
    "webm": partial(_encoded, "webm", "libopus", 48_000, start=0.3, gap=(0.5, 0.5)),
    "live webm": partial(_encoded, "webm", "libopus", 48_000, pipe=True),
    "mpeg-ts": partial(_encoded, "mpegts", "aac"),
    "flv": partial(_encoded, "flv", "aac", 44_100),
    "avi": partial(_encoded, "avi", "libmp3lame"),
    "wma": partial(_encoded, "asf", "wmav2"),
    "ac3": partial(_encoded, "ac3", "ac3", 48_000),
    "eac3": partial(_encoded, "eac3", "eac3", 48_000),
    "amr": partial(_encoded, "amr", "libopencore_amrnb", 8_000),
    "wavpack": partial(_encoded, "wv", "wavpack"),
    "tta": partial(_encoded, "tta", "tta"),
}


@cache
def good(format: str) -> bytes:
    """Return the undamaged recording of a format."""
    return FORMATS[format]()


def _position(rng: random.Random, size: int) -> int:
    """Return an offset, in every second case near the start."""
    return rng.randrange(min(size, _HEADER) if rng.random() < 0.5 else size)


def _bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 2, 5, 30))):
        data[_position(rng, len(data))] ^= 1 << rng.randrange(8)


def _bytes(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 3, 20))):
        data[_position(rng, len(data))] = rng.choice((0, 0x7F, 0xFF, rng.randrange(256)))


def _lengths(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 3))):
        form = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
        value = rng.choice((*_LENGTHS, len(data), rng.randrange(2**32))) % (1 << 8 * struct.calcsize(form))
        struct.pack_into(form, data, min(_position(rng, len(data)), len(data) - 8), value)


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(1, len(data)) :]


def _without_start(rng: random.Random, data: bytearray) -> None:
    del data[: rng.randrange(1, len(data) - 1)]


def _removed(rng: random.Random, data: bytearray) -> None:
    start = _position(rng, len(data))
    del data[start : start + rng.choice((1, 2, 17, 500))]


def _inserted(rng: random.Random, data: bytearray) -> None:
    start = _position(rng, len(data))
    data[start:start] = rng.choice((bytes(1000), b"\xff" * 1000, rng.randbytes(rng.randrange(1, 3000)), data[:300]))


def _swapped(rng: random.Random, data: bytearray) -> None:
    size = rng.choice((4, 16, 200))
    first, second = sorted(_position(rng, len(data)) for _ in range(2))
    head, tail = data[first : first + size], data[second : second + size]
    data[second : second + size] = head
    data[first : first + size] = tail


def _zeroed(rng: random.Random, data: bytearray) -> None:
    start = _position(rng, len(data))
    end = min(len(data), start + rng.choice((8, 100, 3000)))
    data[start:end] = bytes(end - start)


def _spliced(rng: random.Random, data: bytearray) -> None:
    other = good(rng.choice(list(FORMATS)))
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


def _joined(rng: random.Random, data: bytearray) -> None:
    data += good(rng.choice(list(FORMATS)))


DAMAGES: dict[str, Callable[[random.Random, bytearray], None]] = {
    "bits": _bits,
    "bytes": _bytes,
    "lengths": _lengths,
    "cut": _cut,
    "without start": _without_start,
    "removed": _removed,
    "inserted": _inserted,
    "swapped": _swapped,
    "zeroed": _zeroed,
    "spliced": _spliced,
    "joined": _joined,
}


def damaged(seed: int) -> Damaged:
    """Return the damaged file of a seed: formats in turn, one or two kinds of damage."""
    rng = random.Random(seed)
    format = list(FORMATS)[seed % len(FORMATS)]
    data = bytearray(good(format))
    names = rng.sample(list(DAMAGES), rng.choice((1, 1, 1, 2)))
    for name in names:
        DAMAGES[name](rng, data)
        data = data or bytearray(b"\0")
        data.extend(bytes(max(0, 16 - len(data))))
    return Damaged(f"{format}, {' and '.join(names)}", bytes(data))
