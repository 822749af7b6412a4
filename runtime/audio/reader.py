"""Open audio files, streams and arrays and read them as blocks of mono float32 samples at the model's rate."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Self, cast

import numpy as np
import numpy.typing as npt
import soxr

from runtime.audio.decoders import BLOCK_SECONDS, DecodedAudio, UnnamedStream, block_frames, decoder
from runtime.errors import AsrError, AudioInvalidError, AudioNotFoundError, OptionError

__all__ = ["BLOCK_SECONDS", "AudioReader", "Floats", "Source", "from_array", "load_audio", "open_array", "open_audio"]

Floats = npt.NDArray[np.float32]
Source = str | os.PathLike[str] | BinaryIO

# Streams that cannot seek are copied for decoders that do: to memory up to this size, to a temporary file beyond it.
_SPOOL_BYTES = 1 << 24


class AudioReader:
    """Opened audio. It is decoded block by block, so that an hour of 48 kHz stereo is never in memory.

    Attributes:
        duration: seconds that the header declares; None if it declares none.
    """

    def __init__(self, blocks: Generator[Floats, None, None], duration: float | None, resources: ExitStack) -> None:
        self.duration = duration
        self._blocks = blocks
        self._resources = resources

    def blocks(self) -> Iterator[Floats]:
        """Return the iterator over blocks [n] of mono float32 samples.

        A block has at most about ten seconds and is never empty. All calls return the same iterator.

        Raises:
            AudioInvalidError: the next block is damaged, truncated or not finite (raised while iterating).
            AudioInvalidError: the audio has no samples (raised while iterating).
        """
        return self._blocks

    def close(self) -> None:
        """Close the file and end the iterator over blocks."""
        self._blocks.close()
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_audio(source: Source, rate: int, channel: int | None = None, *, name: str = "standard input") -> AudioReader:
    """Open ``source`` to read it as mono float32 samples at ``rate`` Hz.

    Args:
        source: a path, or a binary stream, which need not be seekable. The caller closes the stream.
        rate: sampling rate of the result in Hz.
        channel: index of the channel to read; the mean of all channels if None.
        name: name of a stream in messages.

    Raises:
        AudioNotFoundError: the file does not exist.
        AudioInvalidError: the path is a folder, or the system cannot read it.
        AudioInvalidError: the audio is empty, not audio, or shorter than its header declares.
        AudioUnsupportedError: the container needs the optional package PyAV.
        OptionError: the audio has no such channel.
    """
    with ExitStack() as opened:
        if isinstance(source, (str, os.PathLike)):
            name, stream = str(Path(source)), _open_file(Path(source), opened)
        else:
            stream = _rewindable(source, name, opened)
        with _system_errors(name):
            sound = decoder(stream, name, opened)
        _check_channel(sound, channel)
        return _reader(sound, rate, channel, opened.pop_all())


def open_array(samples: npt.NDArray[Any], sample_rate: int, rate: int, channel: int | None = None) -> AudioReader:
    """Open samples in memory to read them as mono float32 samples at ``rate`` Hz.

    Args:
        samples: [n] or [n, channels]; floats in [-1, 1], or integers, which are scaled by the range of their dtype.
        sample_rate: sampling rate of ``samples`` in Hz.
        rate: sampling rate of the result in Hz.
        channel: index of the channel to read; the mean of all channels if None.

    Raises:
        AudioInvalidError: the array has another shape or dtype.
        AudioInvalidError: ``sample_rate`` is not positive.
        OptionError: the array has no such channel.
    """
    array = np.asarray(samples)
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu":
        raise AudioInvalidError(
            f"audio array: has shape {list(array.shape)} and type {array.dtype}; "
            "give numbers of shape [n] or [n, channels]"
        )
    if sample_rate <= 0:
        raise AudioInvalidError(f"audio array: sample rate {sample_rate} is not positive")
    array = array[:, None] if array.ndim == 1 else array
    step = block_frames(sample_rate, array.shape[1])
    pieces = (_as_floats(array[start : start + step]) for start in range(0, len(array), step))
    sound = DecodedAudio("audio array", sample_rate, array.shape[1], len(array) / sample_rate, pieces)
    _check_channel(sound, channel)
    return _reader(sound, rate, channel, ExitStack())


def load_audio(source: Source, rate: int, channel: int | None = None) -> Floats:
    """Read all of ``source`` as mono float32 samples [n] at ``rate`` Hz.

    Args:
        source: a path, or a binary stream, which the caller closes.
        rate: sampling rate of the result in Hz.
        channel: index of the channel to read; the mean of all channels if None.

    Raises:
        AudioNotFoundError: the file does not exist.
        AudioInvalidError: the audio is empty, damaged, truncated, not audio or not finite.
        AudioUnsupportedError: the container needs the optional package PyAV.
        OptionError: the audio has no such channel.
    """
    with open_audio(source, rate, channel) as reader:
        return np.concatenate(list(reader.blocks()))


def from_array(samples: npt.NDArray[Any], sample_rate: int, rate: int, channel: int | None = None) -> Floats:
    """Convert samples in memory to mono float32 samples [n] at ``rate`` Hz.

    Args:
        samples: [n] or [n, channels]; floats in [-1, 1], or integers, which are scaled by the range of their dtype.
        sample_rate: sampling rate of ``samples`` in Hz.
        rate: sampling rate of the result in Hz.
        channel: index of the channel to read; the mean of all channels if None.

    Raises:
        AudioInvalidError: the array has another shape or dtype, no samples, or samples that are not finite.
        OptionError: the array has no such channel.
    """
    with open_array(samples, sample_rate, rate, channel) as reader:
        return np.concatenate(list(reader.blocks()))


def _as_floats(block: npt.NDArray[Any]) -> Floats:
    """Convert samples to float32; integers are scaled to [-1, 1]."""
    if block.dtype.kind in "iu":
        half = (float(np.iinfo(block.dtype).max) + 1.0) / (1 if block.dtype.kind == "i" else 2)
        block = (block.astype(np.float64) - (0.0 if block.dtype.kind == "i" else half)) / half
    return block.astype(np.float32, copy=False)


def _check_channel(sound: DecodedAudio, channel: int | None) -> None:
    if channel is not None and not 0 <= channel < sound.channels:
        raise OptionError(f"{sound.name}: has no channel {channel}; it has {sound.channels}, counted from 0")


def _reader(sound: DecodedAudio, rate: int, channel: int | None, resources: ExitStack) -> AudioReader:
    """Return a reader that mixes, checks and resamples ``sound``."""
    blocks = _resampled(_mono(sound, channel), sound.rate, rate, sound.name)
    return AudioReader(_with_system_errors(blocks, sound.name), sound.duration, resources)


def _mono(sound: DecodedAudio, channel: int | None) -> Iterator[Floats]:
    """Yield one channel, or the mean of all; raise AudioInvalidError for samples that are not finite."""
    count = 0
    for piece in sound.pieces:
        mono = piece[:, channel] if channel is not None else piece.mean(axis=1, dtype=np.float32)
        finite = np.isfinite(mono)
        if not finite.all():
            index = count + int(np.argmin(finite))
            raise AudioInvalidError(f"{sound.name}: sample {index} ({index / sound.rate:.3f} s) is not a finite number")
        count += len(mono)
        if len(mono):
            yield np.ascontiguousarray(mono, np.float32)
    if count == 0:
        raise AudioInvalidError(f"{sound.name}: holds no samples")


def _resampled(blocks: Iterator[Floats], source_rate: int, rate: int, name: str) -> Iterator[Floats]:
    """Resample ``blocks``; raise AudioInvalidError if nothing is left at the new rate."""
    if source_rate == rate:
        yield from blocks
        return
    resampler = soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality="HQ")
    count = 0
    for block in blocks:
        if len(resampled := resampler.resample_chunk(block)):
            count += len(resampled)
            yield resampled
    if len(resampled := resampler.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield resampled
    elif not count:
        raise AudioInvalidError(f"{name}: is shorter than one sample at {rate} Hz")


@contextmanager
def _system_errors(name: str) -> Iterator[None]:
    """Convert errors of the operating system to AudioNotFoundError or AudioInvalidError."""
    try:
        yield
    except FileNotFoundError as error:
        if isinstance(error, AsrError):
            raise
        raise AudioNotFoundError(f"{name}: no such file") from None
    except OSError as error:
        if isinstance(error, AsrError) or error.errno is None:
            raise
        raise AudioInvalidError(f"{name}: cannot be read ({os.strerror(error.errno)})") from None


def _with_system_errors(blocks: Iterator[Floats], name: str) -> Generator[Floats, None, None]:
    with _system_errors(name):
        yield from blocks


def _open_file(path: Path, opened: ExitStack) -> UnnamedStream:
    """Open a file; a named pipe, which cannot seek, is copied."""
    with _system_errors(str(path)):
        if path.is_dir():
            raise AudioInvalidError(f"{path}: is a folder, not an audio file")
        stream = opened.enter_context(path.open("rb"))
        return UnnamedStream(stream) if stream.seekable() else _spooled(stream, str(path), opened)


def _rewindable(stream: BinaryIO, name: str, opened: ExitStack) -> UnnamedStream:
    """Return ``stream`` itself if it can seek and is at its start, else a copy of the rest."""
    if isinstance(stream, (io.BytesIO, io.BufferedReader, tempfile.SpooledTemporaryFile)):
        with _system_errors(name):
            if stream.seekable() and not stream.tell():
                return UnnamedStream(cast("IO[bytes]", stream))
    return _spooled(stream, name, opened)


def _spooled(stream: IO[bytes], name: str, opened: ExitStack) -> UnnamedStream:
    """Copy the rest of ``stream`` to a temporary file, in which decoders can seek."""
    spool = opened.enter_context(tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES))  # noqa: SIM115 (entered by opened)
    with _system_errors(name):
        try:
            shutil.copyfileobj(stream, spool)
        except TypeError:
            raise AudioInvalidError(f"{name}: is a text stream, not a binary stream; open it in binary mode") from None
    return UnnamedStream(cast("IO[bytes]", spool))
