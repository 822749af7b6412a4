"""Files that are not audio, or have wrong headers."""

from __future__ import annotations

import gzip
import io
import random
import struct
import zipfile
from functools import cache

import numpy as np
import soundfile

from tests.helpers.load_client import request
from tests.hostile.attempts import (
    TRANSCRIPTIONS,
    Attempt,
    good,
    kind,
    post,
    recording,
    several,
)

# Limit of the server, in seconds.
MAX_AUDIO_SECONDS = 60

_CONTAINERS = ("WAV", "FLAC", "OGG", "AIFF", "AU", "CAF", "W64", "RF64")
_MAGIC = {
    "wav": b"RIFF\xff\xff\xff\x7fWAVEfmt ",
    "flac": b"fLaC\x00\x00\x00\x22",
    "ogg": b"OggS\x00\x02" + bytes(8),
    "mp3": b"ID3\x04\x00\x00\x00\x00\x7f\x7f",
    "aiff": b"FORM\x7f\xff\xff\xffAIFFCOMM",
    "caf": b"caff\x00\x01\x00\x00desc",
    "au": b".snd\xff\xff\xff\xff",
    "mp4": b"\x00\x00\x00\x18ftypM4A \x00\x00\x00\x00",
    "webm": b"\x1a\x45\xdf\xa3\x01\x00\x00\x00\x00\x00\x00\x1f",
    "nothing known": b"",
}


def _cut(rng: random.Random, container: str) -> Attempt:
    audio = recording(container)
    return post({}, audio[: rng.randrange(1, len(audio) * 3 // 4)])


def _cut_in_header(rng: random.Random, container: str) -> Attempt:
    return post({}, recording(container)[: rng.randrange(1, 40)])


def _garbage(rng: random.Random, magic: bytes) -> Attempt:
    return post({}, magic + rng.randbytes(rng.randrange(1, 20_000)))


several("truncated audio", {each.lower(): each for each in _CONTAINERS}, _cut)
several("audio cut in its header", {each.lower(): each for each in _CONTAINERS}, _cut_in_header)
several("garbage as audio", _MAGIC, _garbage)


@kind
def _wav_longer_than_it_is(rng: random.Random) -> Attempt:
    audio = bytearray(recording("WAV"))
    size = rng.randrange(len(audio), 2**31)
    struct.pack_into("<I", audio, 4, size + 36)
    struct.pack_into("<I", audio, 40, size)
    return post({}, bytes(audio))


@kind
def _flac_longer_than_it_is(rng: random.Random) -> Attempt:
    audio = bytearray(recording("FLAC"))
    audio[22:26] = struct.pack(">I", rng.randrange(2**28, 2**32))  # the lower bits of the number of samples
    return post({}, bytes(audio))


@kind
def _wav_with_absurd_format(rng: random.Random) -> Attempt:
    audio = bytearray(recording("WAV"))
    at, form_, value = rng.choice([(22, "<H", 0), (22, "<H", 65_535), (24, "<I", 0), (24, "<I", 2**32 - 1)])
    struct.pack_into(form_, audio, at, value)
    return post({}, bytes(audio))


@kind
def _not_finite_samples(rng: random.Random) -> Attempt:
    samples = np.zeros(16_000, np.float32)
    samples[rng.randrange(16_000)] = rng.choice([np.nan, np.inf, -np.inf])
    file = io.BytesIO()  # not WAV: with floats, it contains the time of writing
    soundfile.write(file, samples, 16_000, format="AU", subtype="FLOAT")
    return post({}, file.getvalue(), "audio.au")


@kind
def _longer_than_allowed(rng: random.Random) -> Attempt:
    file = io.BytesIO()  # silence compresses to almost nothing
    soundfile.write(
        file, np.zeros((MAX_AUDIO_SECONDS + rng.randrange(1, 600)) * 16_000, np.int16), 16_000, format="FLAC"
    )
    return post({}, file.getvalue())


@kind
def _no_samples(_: random.Random) -> Attempt:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(0, np.int16), 16_000, format="WAV")
    return post({}, file.getvalue())


@kind
def _empty_file(_: random.Random) -> Attempt:
    return post({}, b"")


@kind
def _no_file(_: random.Random) -> Attempt:
    return post({"response_format": "json"}, None)


@cache
def _zip_bomb() -> bytes:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr(zipfile.ZipInfo("../../audio.wav"), bytes(50_000_000), zipfile.ZIP_DEFLATED, 9)
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        for number in range(16):
            archive.writestr(zipfile.ZipInfo(f"{number}.zip"), inner.getvalue(), zipfile.ZIP_DEFLATED)
    return outer.getvalue()


@kind
def _zip_bomb_as_audio(_: random.Random) -> Attempt:
    return post({}, _zip_bomb())


@kind
def _gzip_bomb_as_audio(_: random.Random) -> Attempt:
    return post({}, _gzip_bomb(), "audio.wav.gz")


@cache
def _gzip_bomb() -> bytes:
    return gzip.compress(bytes(20_000_000), mtime=0)


@kind
def _compressed_body(_: random.Random) -> Attempt:
    headers, _body = good(**{"Content-Encoding": "gzip"})
    return Attempt(request("POST", TRANSCRIPTIONS, headers, _gzip_bomb()))


@kind
def _text_as_audio(rng: random.Random) -> Attempt:
    texts = (
        b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
        b"#EXTM3U\n/etc/passwd\n",
        b"#!/bin/sh\nid\n",
    )
    return post({}, rng.choice(texts))
