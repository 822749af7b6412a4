"""Decode audio files with libsndfile, and other containers with the optional package PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import soundfile

from runtime.errors import AudioInvalidError, AudioUnsupportedError

Floats = npt.NDArray[np.float32]

BLOCK_SECONDS = 10
# Maximum size of a block, for headers with a wrong rate or number of channels: 64 MB of float32.
_BLOCK_VALUES = 1 << 24
# Programs that write a WAV to a pipe do not know its length and write 0, or at least this number, into the header.
UNKNOWN_LENGTH = 0x7FFFF000

_CONTAINERS = "aac aif aiff amr au caf flac m4a mka mp3 mp4 oga ogg opus w64 wav webm wma"
AUDIO_SUFFIXES = frozenset(f".{name}" for name in _CONTAINERS.split())


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """Output of a decoder.

    Attributes:
        name: name of the audio, for messages.
        rate: Hz.
        channels: number of channels.
        duration: seconds that the header declares, or None.
        pieces: samples [n, channels], at most ten seconds each.
    """

    name: str
    rate: int
    channels: int
    duration: float | None
    pieces: Iterator[npt.NDArray[Any]]


class UnnamedStream:
    """Stream without a name. soundfile derives the format from a name, and reads ``talk.raw`` as headerless samples."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.read, self.seek, self.tell = stream.read, stream.seek, stream.tell
        self.readinto = stream.readinto  # type: ignore[attr-defined]


def block_frames(rate: int, channels: int) -> int:
    """Return the number of frames of a block: ten seconds, or fewer for a very high rate or number of channels."""
    return max(1, min(rate * BLOCK_SECONDS, _BLOCK_VALUES // max(1, channels)))


def decoder(stream: UnnamedStream, name: str, opened: ExitStack) -> DecodedAudio:
    """Recognize the container and read its header.

    Args:
        stream: seekable stream with the whole file.
        name: name of the audio, for messages.
        opened: receives the resources that must be closed.

    Raises:
        AudioInvalidError: the file is empty, not audio, or shorter than its header declares. Reading the pieces raises
            it too, for damaged or truncated audio.
        AudioUnsupportedError: the container needs PyAV, which is not installed.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if size == 0:
        raise AudioInvalidError(f"{name}: is empty (0 bytes)")
    _check_length(stream, size, name)
    try:
        sound = opened.enter_context(soundfile.SoundFile(stream))
    except soundfile.LibsndfileError as error:
        stream.seek(0)
        if not _is_av_container(stream.read(16)):
            reason = str(error.error_string).strip().rstrip(".")
            raise AudioInvalidError(f"{name}: is not audio that can be decoded ({reason})") from None
        stream.seek(0)
        return _av_decoder(stream, name, opened)
    declared = sound.frames if sound.seekable() and 0 < sound.frames < 2**62 else None
    duration = None if declared is None else declared / sound.samplerate
    return DecodedAudio(name, sound.samplerate, sound.channels, duration, _read(sound, declared, name))


def _check_length(stream: UnnamedStream, size: int, name: str) -> None:
    """Compare the declared length of a container with the file's: libsndfile reads truncated files without an error."""
    head = stream.read(40)
    declared = size
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        declared = int.from_bytes(head[4:8], "little") + 8
    elif head[:4] == b"RF64" and head[12:16] == b"ds64":  # EBU Tech 3306: the size in 64 bits
        declared = int.from_bytes(head[20:28], "little") + 8
    elif head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        declared = int.from_bytes(head[4:8], "big") + 8
    elif head[:4] == b".snd":
        declared = int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
    elif head[:4] == b"riff" and head[24:28] == b"wave":  # Sony Wave64
        declared = int.from_bytes(head[16:24], "little")
    elif head[:4] == b"OggS":
        _check_ogg(stream, size, name)
    stream.seek(0)
    if size < declared - 1 and 8 < declared < UNKNOWN_LENGTH:  # some programs omit one byte of padding
        raise AudioInvalidError(
            f"{name}: is truncated: its header announces {declared} bytes, the file has {size}; copy it again"
        )


def _check_ogg(stream: UnnamedStream, size: int, name: str) -> None:
    """Check that the last page is complete and marked as the last one. An Ogg page has at most 65,307 bytes."""
    stream.seek(max(0, size - 65_307))
    tail = stream.read(65_307)
    page = tail.rfind(b"OggS")
    flags = tail[page + 5] if 0 <= page < len(tail) - 5 else 0
    table = tail[page + 27 : page + 27 + tail[page + 26]] if 0 <= page < len(tail) - 27 else b""
    if not flags & 4 or page + 27 + len(table) + sum(table) > len(tail):
        raise AudioInvalidError(f"{name}: is truncated: its last Ogg page is not the end of the stream; copy it again")


def _read(sound: soundfile.SoundFile, declared: int | None, name: str) -> Iterator[Floats]:
    """Yield samples [n, channels]; raise AudioInvalidError if the file ends before its declared length."""
    step, read = block_frames(sound.samplerate, sound.channels), 0
    while True:
        try:
            block = sound.read(step, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioInvalidError(
                f"{name}: is damaged or truncated: decoding stops after {read / sound.samplerate:.2f} s ({error})"
            ) from None
        if not len(block):
            break
        read += len(block)
        yield block
    if declared is not None and read < declared:
        raise AudioInvalidError(
            f"{name}: is truncated: its header announces {declared} samples, only {read} are there; copy it again"
        )


def _is_av_container(head: bytes) -> bool:
    """Whether PyAV reads the container and libsndfile does not: MP4, Matroska and WebM, raw AAC, ASF (wma), AMR."""
    return (
        head[4:8] == b"ftyp"
        or head.startswith((b"\x1aE\xdf\xa3", b"0&\xb2u\x8ef\xcf\x11", b"#!AMR"))
        or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0)
    )


def _av_decoder(stream: UnnamedStream, name: str, opened: ExitStack) -> DecodedAudio:
    """Open a container with PyAV, an optional package."""
    try:
        import av
    except ImportError:
        raise AudioUnsupportedError(
            f"{name}: m4a, mp4, webm, aac, wma and amr need the optional package PyAV: pip install 'asr-deploy[av]'"
        ) from None
    with _av_errors(name):
        container = opened.enter_context(av.open(stream))
        if not container.streams.audio:
            raise AudioInvalidError(f"{name}: holds no audio track")
        track = container.streams.audio[0]
        if not track.rate or not track.channels:
            raise AudioInvalidError(f"{name}: its audio track declares no sample rate or no channels")
        duration = getattr(container, "duration", None)  # None if the container does not declare it
        declared = duration / av.time_base if duration else None
    return DecodedAudio(name, track.rate, track.channels, declared, _av_read(container, track, declared, name))


@contextmanager
def _av_errors(name: str) -> Iterator[None]:
    """Convert errors of PyAV to AudioInvalidError."""
    import av

    try:
        yield
    except av.FFmpegError as error:
        raise AudioInvalidError(f"{name}: is not audio that can be decoded ({error.strerror or error})") from None


def _av_read(container: Any, track: Any, declared: float | None, name: str) -> Iterator[Floats]:
    """Yield samples [n, channels]; raise AudioInvalidError if the container ends before its declared length."""
    read, step = 0, block_frames(track.rate, track.channels)
    with _av_errors(name):
        for piece in _joined(_av_frames(container, track, name), step):
            read += len(piece)
            yield piece
    # Tolerate one second. In a container with video, the declared length may be that of the video.
    if declared and not container.streams.video and read / track.rate < declared - 1.0:
        raise AudioInvalidError(
            f"{name}: is truncated: its header announces {declared:.1f} s, only {read / track.rate:.1f} s "
            "are there; copy it again"
        )


def _av_frames(container: Any, track: Any, name: str) -> Iterator[Floats]:
    """Yield decoded frames [n, channels] as float32 at the track's rate, for every sample format of the codec."""
    import av

    convert = av.AudioResampler(format="fltp", rate=track.rate)
    first = None
    for frame in container.decode(track):
        layout = (frame.format.name, frame.layout.name, frame.sample_rate)
        first = first or layout
        if layout != first:
            raise AudioInvalidError(f"{name}: its sample rate or its channels change within the file; convert it first")
        yield from map(_interleaved, convert.resample(frame))
    yield from map(_interleaved, convert.resample(None))


def _interleaved(frame: Any) -> Floats:
    """Convert a planar frame of PyAV to samples [n, channels]."""
    planar: Floats = np.atleast_2d(frame.to_ndarray()).astype(np.float32, copy=False)
    return planar.T


def _joined(pieces: Iterable[Floats], step: int) -> Iterator[Floats]:
    """Join small pieces until they have ``step`` rows: a codec's frame lasts 20 to 30 ms."""
    parts: list[Floats] = []
    rows = 0
    for piece in pieces:
        parts.append(piece)
        rows += len(piece)
        if rows >= step:
            yield np.concatenate(parts)
            parts, rows = [], 0
    if parts:
        yield np.concatenate(parts)
