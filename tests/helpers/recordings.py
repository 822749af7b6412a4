"""Recordings for tests of the reader, written with PyAV, and changes to their bytes."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from runtime.audio.containers import mpeg
from runtime.audio.containers.ogg import checksum

RATE = 16_000


def tone(seconds: float, frequency: float = 440.0, rate: int = RATE) -> np.ndarray:
    """Return float32 samples [n] of a tone."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


class Pipe(io.RawIOBase):
    """A destination that cannot seek, so that headers declare no length."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)


def sound(samples: np.ndarray, format: str, subtype: str | None = None, rate: int = RATE) -> bytes:
    """Return samples [n] or [n, channels] in a container of libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def encoded(
    samples: np.ndarray,
    format: str,
    codec: str,
    *,
    rate: int = RATE,
    start: float = 0.0,
    gap: tuple[float, float] | None = None,
    pipe: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    """Return mono samples [n] in a container of FFmpeg.

    Args:
        samples: float32 samples at ``rate``.
        format: FFmpeg's name of the container.
        codec: FFmpeg's name of the encoder.
        rate: Hz.
        start: time of the first sample in seconds.
        gap: time from which on packets come later, and by how much, in seconds.
        pipe: write as to a pipe.
        options: of the container.
    """
    return tracks([(samples, start)], format, codec, rate=rate, gap=gap, pipe=pipe, options=options)


def tracks(
    contents: Sequence[tuple[np.ndarray, float]],
    format: str,
    codec: str,
    *,
    rate: int = RATE,
    gap: tuple[float, float] | None = None,
    pipe: bool = False,
    options: dict[str, str] | None = None,
    default: int | None = None,
) -> bytes:
    """Return a container with an audio track for each of ``contents``: samples and the time of the first one."""
    with ExitStack() as opened:
        # A name, since the option faststart of MP4 reads the file again.
        file: Any = Pipe() if pipe else opened.enter_context(tempfile.NamedTemporaryFile()).name
        _write(file, contents, format, codec, rate, gap, options, default)
        return bytes(file.data) if pipe else Path(file).read_bytes()


def _write(
    file: Any,
    contents: Sequence[tuple[np.ndarray, float]],
    format: str,
    codec: str,
    rate: int,
    gap: tuple[float, float] | None,
    options: dict[str, str] | None,
    default: int | None,
) -> None:
    with av.open(file, "w", format=format, options=options or {}) as container:
        streams: list[Any] = []
        for index in range(len(contents)):
            stream: Any = container.add_stream(codec, rate=rate)
            stream.layout = "mono"
            if codec == "wmav2":  # it has no default
                stream.bit_rate = 64_000
            stream.metadata["language"] = ("eng", "deu", "fra")[index % 3]
            if default is not None:
                stream.disposition = av.stream.Disposition.default if index == default else av.stream.Disposition(0)
            streams.append(stream)
        packets = []
        for stream, (samples, start) in zip(streams, contents, strict=True):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            size = stream.codec_context.frame_size or 1024
            resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate, frame_size=size)
            for resampled in [*resampler.resample(frame), *resampler.resample(None)]:
                packets += stream.encode(resampled)
            packets += stream.encode(None)
            for packet in packets:
                if packet.stream is stream and packet.pts is not None:
                    seconds = float(packet.pts * packet.time_base)
                    later = start + (gap[1] if gap and seconds >= gap[0] else 0.0)
                    packet.pts = packet.dts = packet.pts + round(later / packet.time_base)
        packets.sort(key=lambda packet: float((packet.dts or 0) * packet.time_base))
        container.mux(packets)


def without_end_of_stream(data: bytes) -> bytes:
    """Return an Ogg file whose last page does not have the end-of-stream flag, with the right checksum."""
    start = data.rindex(b"OggS")
    page = bytearray(data[start:])
    assert page[5] & 4
    page[5] &= ~4
    page[22:26] = bytes(4)
    page[22:26] = checksum(bytes(page)).to_bytes(4, "little")
    return data[:start] + bytes(page)


def wav_chunks(samples: np.ndarray, parts: int) -> bytes:
    """Return a WAV of 16 bits whose samples lie in several data chunks, with other chunks between them."""
    chunks = b"fmt " + (16).to_bytes(4, "little") + b"\x01\0\x01\0"
    chunks += RATE.to_bytes(4, "little") + (2 * RATE).to_bytes(4, "little") + b"\x02\0\x10\0"
    for part in np.array_split((samples * 32767).astype("<i2"), parts):
        chunks += b"data" + (2 * len(part)).to_bytes(4, "little") + part.tobytes()
        chunks += b"note" + (3).to_bytes(4, "little") + b"abc\0"
    return b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WAVE" + chunks


def without_xing(data: bytes) -> bytes:
    """Return the frames of an MP3 without tags and without its Xing header."""
    file = io.BytesIO(data)
    (recording,) = mpeg.recordings(file, 0, len(data), "audio") or []
    return data[recording.start + recording.first.length * recording.tagged : recording.end]
