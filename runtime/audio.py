"""Audio of any container, rate and channel count as mono float32 at the model's rate."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from runtime.errors import AsrError, AudioInvalidError, AudioNotFoundError, AudioUnsupportedError, OptionError

Floats = npt.NDArray[np.float32]

# Decoded and resampled piece by piece: an hour of 48 kHz stereo never lies in memory as such.
_BLOCK_SECONDS = 10
# Programs that write a WAV to a pipe cannot know its length and put 0, or 2 GiB and more, into the header.
_UNKNOWN_LENGTH = 0x7FFFF000


def load_audio(source: str | os.PathLike[str] | BinaryIO, rate: int, channel: int | None = None) -> Floats:
    """Decode ``source`` to mono float32 samples at ``rate`` Hz.

    Args:
        source: a path, or a binary stream (read to its end; need not be seekable).
        rate: the result's sampling rate in Hz.
        channel: take this channel, counted from 0, instead of the mean of all.

    Raises:
        AudioNotFoundError: no such file.
        AudioInvalidError: a folder, empty, not audio, truncated, without samples, or with samples that are not finite.
        AudioUnsupportedError: the container needs the optional package PyAV.
        OptionError: the audio has no such channel.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _decode(io.BytesIO(source.read()), "standard input", rate, channel)
    path = Path(source)
    try:
        if path.is_dir():
            raise AudioInvalidError(f"{path}: is a folder, not an audio file")
        with path.open("rb") as stream:
            seekable = _Nameless(stream) if stream.seekable() else io.BytesIO(stream.read())  # a named pipe is not
            return _decode(seekable, str(path), rate, channel)
    except FileNotFoundError:
        raise AudioNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        if isinstance(error, AsrError) or error.errno is None:
            raise
        raise AudioInvalidError(f"{path}: cannot be read ({os.strerror(error.errno)})") from None


class _Nameless:
    """A file without its name: soundfile takes the format from it, and ``talk.raw`` for headerless samples."""

    def __init__(self, stream: BinaryIO) -> None:
        self.read, self.seek, self.tell = stream.read, stream.seek, stream.tell
        self.readinto = stream.readinto  # type: ignore[attr-defined]


_Seekable = _Nameless | io.BytesIO


def from_array(samples: npt.NDArray[Any], sample_rate: int, rate: int, channel: int | None = None) -> Floats:
    """Samples from memory as mono float32 at ``rate`` Hz.

    Args:
        samples: [n] or [n, channels]; floats in [-1, 1], or integers, which are scaled by their type's range.
        sample_rate: their rate in Hz.
        rate: the result's rate in Hz.
        channel: as in :func:`load_audio`.
    """
    array = np.asarray(samples)
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu":
        raise AudioInvalidError(
            f"audio array: has shape {list(array.shape)} and type {array.dtype}; "
            "give numbers of shape [n] or [n, channels]"
        )
    if sample_rate <= 0:
        raise AudioInvalidError(f"audio array: sample rate {sample_rate} is not positive")
    if array.dtype.kind in "iu":
        scale = float(np.iinfo(array.dtype).max) + 1.0
        offset = 0.0 if array.dtype.kind == "i" else scale / 2
        array = (array.astype(np.float64) - offset) / (scale if array.dtype.kind == "i" else scale / 2)
    block = array.astype(np.float32, copy=False)
    block = block[:, None] if block.ndim == 1 else block
    return _collect(iter([block]), sample_rate, block.shape[1], rate, channel, "audio array")


def _decode(stream: _Seekable, name: str, rate: int, channel: int | None) -> Floats:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if size == 0:
        raise AudioInvalidError(f"{name}: is empty (0 bytes)")
    _check_length(stream, size, name)
    try:
        sound = soundfile.SoundFile(stream)
    except soundfile.LibsndfileError as error:
        stream.seek(0)
        if not _is_av_container(stream.read(16)):
            reason = str(error.error_string).strip().rstrip(".")
            raise AudioInvalidError(f"{name}: is not audio that can be decoded ({reason})") from None
        stream.seek(0)
        return _decode_with_av(stream, name, rate, channel)
    with sound:
        return _collect(_blocks(sound, name), sound.samplerate, sound.channels, rate, channel, name)


def _check_length(stream: _Seekable, size: int, name: str) -> None:
    """Compare the length that a container declares with the file's: libsndfile reads truncated ones without a word."""
    head = stream.read(40)
    declared = size
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        declared = int.from_bytes(head[4:8], "little") + 8
    elif head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        declared = int.from_bytes(head[4:8], "big") + 8
    elif head[:4] == b".snd":
        declared = int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
    elif head[:4] == b"riff" and head[24:28] == b"wave":  # Sony Wave64
        declared = int.from_bytes(head[16:24], "little")
    elif head[:4] == b"OggS":
        _check_ogg(stream, size, name)
    stream.seek(0)
    if size < declared - 1 and 8 < declared < _UNKNOWN_LENGTH:  # one byte of padding is left out by some programs
        raise AudioInvalidError(
            f"{name}: is truncated: its header announces {declared} bytes, the file has {size}; copy it again"
        )


def _check_ogg(stream: _Seekable, size: int, name: str) -> None:
    """The last page of an Ogg stream says that it is the last, and a page is at most 65,307 bytes."""
    stream.seek(max(0, size - 65_307))
    tail = stream.read(65_307)
    page = tail.rfind(b"OggS")
    flags = tail[page + 5] if 0 <= page < len(tail) - 5 else 0
    table = tail[page + 27 : page + 27 + tail[page + 26]] if 0 <= page < len(tail) - 27 else b""
    if not flags & 4 or page + 27 + len(table) + sum(table) > len(tail):
        raise AudioInvalidError(f"{name}: is truncated: its last Ogg page is not the end of the stream; copy it again")


def _blocks(sound: soundfile.SoundFile, name: str) -> Iterator[Floats]:
    """[n, channels] pieces; raises when the file ends before its header says."""
    declared, read = sound.frames, 0
    while True:
        try:
            block = sound.read(sound.samplerate * _BLOCK_SECONDS, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioInvalidError(
                f"{name}: is damaged or truncated: decoding stops after {read / sound.samplerate:.2f} s ({error})"
            ) from None
        if not len(block):
            break
        read += len(block)
        yield block
    if sound.seekable() and 0 < declared < 2**62 and read < declared:
        raise AudioInvalidError(
            f"{name}: is truncated: its header announces {declared} samples, only {read} are there; copy it again"
        )


def _collect(
    blocks: Iterator[Floats], source_rate: int, channels: int, rate: int, channel: int | None, name: str
) -> Floats:
    """Mix or pick a channel, check, resample and join."""
    if channel is not None and not 0 <= channel < channels:
        raise OptionError(f"{name}: has no channel {channel}; it has {channels}, counted from 0")
    resampler = (
        soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality="HQ") if source_rate != rate else None
    )
    parts: list[Floats] = []
    seen = 0
    for block in blocks:
        mono = block[:, channel] if channel is not None else block.mean(axis=1, dtype=np.float32)
        finite = np.isfinite(mono)
        if not finite.all():
            place = seen + int(np.argmin(finite))
            raise AudioInvalidError(f"{name}: sample {place} ({place / source_rate:.3f} s) is not a finite number")
        seen += len(mono)
        parts.append(resampler.resample_chunk(mono) if resampler else mono)
    if seen == 0:
        raise AudioInvalidError(f"{name}: holds no samples")
    if resampler:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.ascontiguousarray(np.concatenate(parts), np.float32)


def _is_av_container(head: bytes) -> bool:
    """What PyAV reads and libsndfile does not: MP4 and its kin, Matroska and WebM, raw AAC, ASF (wma), AMR."""
    return (
        head[4:8] == b"ftyp"
        or head.startswith((b"\x1aE\xdf\xa3", b"0&\xb2u\x8ef\xcf\x11", b"#!AMR"))
        or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0)
    )


def _decode_with_av(stream: _Seekable, name: str, rate: int, channel: int | None) -> Floats:
    """Decode with PyAV, an optional package."""
    try:
        import av
    except ImportError:
        raise AudioUnsupportedError(
            f"{name}: m4a, mp4, webm, aac, wma and amr need the optional package PyAV: pip install 'asr-deploy[av]'"
        ) from None
    try:
        with av.open(stream) as container:
            if not container.streams.audio:
                raise AudioInvalidError(f"{name}: holds no audio track")
            track = container.streams.audio[0]
            if not track.rate or not track.channels:
                raise AudioInvalidError(f"{name}: its audio track says no sample rate or no channels")
            samples = _collect(
                (np.atleast_2d(_planar(frame)).T.astype(np.float32) for frame in _frames(container, track)),
                track.rate,
                track.channels,
                rate,
                channel,
                name,
            )
            # A second of tolerance: the container's length may be that of a longer picture track.
            duration = getattr(container, "duration", None)  # None where the container does not say
            declared = (duration or 0) / av.time_base
            if not container.streams.video and len(samples) / rate < declared - 1.0:
                raise AudioInvalidError(
                    f"{name}: is truncated: its header announces {declared:.1f} s, only {len(samples) / rate:.1f} s "
                    "are there; copy it again"
                )
            return samples
    except av.FFmpegError as error:
        raise AudioInvalidError(f"{name}: is not audio that can be decoded ({error.strerror or error})") from None


def _frames(container: Any, track: Any) -> Iterator[Any]:
    """Decoded frames as planar float32, whatever the codec's own sample format is."""
    import av

    convert = av.AudioResampler(format="fltp")
    for frame in container.decode(track):
        yield from convert.resample(frame)
    yield from convert.resample(None)


def _planar(frame: Any) -> npt.NDArray[Any]:
    planar: npt.NDArray[Any] = frame.to_ndarray()
    return planar
