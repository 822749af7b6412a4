"""Open audio files, streams and arrays and read them as blocks of mono float32 samples at the model's rate."""

from __future__ import annotations

import io
import logging
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Self, cast

import numpy as np
import numpy.typing as npt
import soxr

from runtime.audio.containers.byte_ranges import UnnamedStream
from runtime.audio.decoded import BLOCK_SECONDS, DecodedAudio, Piece, Warn, block_frames
from runtime.audio.decoders import decoder
from runtime.audio.levels import FloatRange, cancel_warning, integer_scale, mix, peak
from runtime.errors import AsrError, AudioInvalidError, AudioNotFoundError, OptionError

__all__ = ["BLOCK_SECONDS", "AudioReader", "Floats", "Source", "from_array", "load_audio", "open_array", "open_audio"]

log = logging.getLogger(__name__)

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


def open_audio(
    source: Source,
    rate: int,
    channel: int | None = None,
    *,
    track: int | None = None,
    name: str = "standard input",
    warn: Warn = log.warning,
) -> AudioReader:
    """Open ``source`` to read it as mono float32 samples at ``rate`` Hz.

    Args:
        source: a path, or a binary stream, which need not be seekable. The caller closes the stream.
        rate: sampling rate of the result in Hz.
        channel: index of the channel to read; if None, the mean of all channels, or the loudest one where they cancel.
        track: index of the audio track of a container, counted from 0; the default track if None.
        name: name of a stream in messages.
        warn: called with a message about audio that was changed to be read; logs it by default.

    Raises:
        AudioNotFoundError: the file does not exist.
        AudioInvalidError: the path is a folder, or the system cannot read it.
        AudioInvalidError: the audio is empty, not audio, or breaks off.
        AudioUnsupportedError: the container needs the optional package PyAV.
        OptionError: the audio has no such channel or track.
    """
    with ExitStack() as opened:
        if isinstance(source, (str, os.PathLike)):
            name, stream = str(Path(source)), _open_file(Path(source), opened)
        else:
            stream = _rewindable(source, name, opened)
        with _system_errors(name):
            sound = decoder(stream, name, opened, track=track, warn=warn)
        _check_channel(sound, channel)
        return _reader(sound, rate, channel, opened.pop_all(), warn)


def open_array(
    samples: npt.NDArray[Any],
    sample_rate: int,
    rate: int,
    channel: int | None = None,
    *,
    warn: Warn = log.warning,
) -> AudioReader:
    """Open samples in memory to read them as mono float32 samples at ``rate`` Hz.

    Args:
        samples: [n] or [n, channels]; floats in [-1, 1], or integers, which are scaled by the range of their dtype.
            Integers stored as floats or in a wider dtype are scaled by their own range, with a warning.
        sample_rate: sampling rate of ``samples`` in Hz.
        rate: sampling rate of the result in Hz.
        channel: index of the channel to read; if None, the mean of all channels, or the loudest one where they cancel.
        warn: called with a message about audio that was changed to be read; logs it by default.

    Raises:
        AudioInvalidError: the array has another shape, such as [channels, n], or another dtype.
        AudioInvalidError: floats exceed [-1, 1] and are no integers (raised while iterating), or integers 32 bits.
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
    if 0 < len(array) < array.shape[1]:
        raise AudioInvalidError(
            f"audio array: has shape {list(array.shape)}, which is {array.shape[1]} channels of {len(array)} samples; "
            "give [n, channels], for example array.T"
        )
    pieces = _array_pieces(array, sample_rate, warn)
    sound = DecodedAudio("audio array", array.shape[1], len(array) / sample_rate, pieces)
    _check_channel(sound, channel)
    return _reader(sound, rate, channel, ExitStack(), warn)


def load_audio(source: Source, rate: int, channel: int | None = None, *, track: int | None = None) -> Floats:
    """Read all of ``source`` as mono float32 samples [n] at ``rate`` Hz.

    Args:
        source: a path, or a binary stream, which the caller closes.
        rate: sampling rate of the result in Hz.
        channel: index of the channel to read; if None, the mean of all channels, or the loudest one where they cancel.
        track: index of the audio track of a container, counted from 0; the default track if None.

    Raises:
        AudioNotFoundError: the file does not exist.
        AudioInvalidError: the audio is empty, damaged, truncated, not audio or not finite.
        AudioUnsupportedError: the container needs the optional package PyAV.
        OptionError: the audio has no such channel or track.
    """
    with open_audio(source, rate, channel, track=track) as reader:
        return np.concatenate(list(reader.blocks()))


def from_array(samples: npt.NDArray[Any], sample_rate: int, rate: int, channel: int | None = None) -> Floats:
    """Convert samples in memory to mono float32 samples [n] at ``rate`` Hz.

    Args:
        samples: [n] or [n, channels]; floats in [-1, 1], or integers, which are scaled by the range of their dtype.
        sample_rate: sampling rate of ``samples`` in Hz.
        rate: sampling rate of the result in Hz.
        channel: index of the channel to read; if None, the mean of all channels, or the loudest one where they cancel.

    Raises:
        AudioInvalidError: the array has another shape, dtype or range.
        AudioInvalidError: the array has no samples, or samples that are not finite.
        OptionError: the array has no such channel.
    """
    with open_array(samples, sample_rate, rate, channel) as reader:
        return np.concatenate(list(reader.blocks()))


def _array_pieces(array: npt.NDArray[Any], rate: int, warn: Warn) -> Iterator[Piece]:
    """Yield an array [n, channels] block by block as floats in [-1, 1]."""
    step = block_frames(rate, array.shape[1])
    starts = range(0, len(array), step)
    blocks = (array[start : start + step] for start in starts)
    if array.dtype.kind == "f":
        levels = FloatRange("audio array", lambda: peak(array), warn)
        return (Piece(levels.apply(block).astype(np.float32, copy=False), rate) for block in blocks)
    zero, full = integer_scale(array, "audio array", warn)
    return (Piece(((block.astype(np.float64) - zero) / full).astype(np.float32), rate) for block in blocks)


def _check_channel(sound: DecodedAudio, channel: int | None) -> None:
    if channel is not None and not 0 <= channel < sound.channels:
        raise OptionError(f"{sound.name}: has no channel {channel}; it has {sound.channels}, counted from 0")


def _reader(sound: DecodedAudio, rate: int, channel: int | None, resources: ExitStack, warn: Warn) -> AudioReader:
    """Return a reader that mixes, checks and resamples ``sound``."""
    blocks = _resampled(_mono(sound, channel, warn), rate, sound.name)
    return AudioReader(_with_system_errors(blocks, sound.name), sound.duration, resources)


def _mono(sound: DecodedAudio, channel: int | None, warn: Warn) -> Iterator[tuple[Floats, int]]:
    """Yield one channel, or the mean of all, with its rate; raise AudioInvalidError for samples that are not finite."""
    count, seconds, cancelled = 0, 0.0, False
    for samples, rate in sound.pieces:
        if channel is None:
            mono, cancels = mix(samples, rate)
        elif channel < samples.shape[1]:
            mono, cancels = np.ascontiguousarray(samples[:, channel], np.float32), False
        else:
            raise AudioInvalidError(
                f"{sound.name}: has no channel {channel} from {seconds:.2f} s on, only {samples.shape[1]}"
            )
        finite = np.isfinite(mono)
        if not finite.all():
            index = int(np.argmin(finite))
            raise AudioInvalidError(
                f"{sound.name}: sample {count + index} ({seconds + index / rate:.3f} s) is not a finite number"
            )
        if cancels and not cancelled:
            cancelled = True
            warn(cancel_warning(sound.name))
        count += len(mono)
        seconds += len(mono) / rate
        if len(mono):
            yield mono, rate
    if count == 0:
        raise AudioInvalidError(f"{sound.name}: holds no samples")


def _resampled(blocks: Iterator[tuple[Floats, int]], rate: int, name: str) -> Iterator[Floats]:
    """Resample ``blocks``, whose rate may change; raise AudioInvalidError if nothing is left at the new rate."""
    resampler: soxr.ResampleStream | None = None
    source_rate, count = 0, 0
    for block, block_rate in chain(blocks, [(np.zeros(0, np.float32), 0)]):
        if block_rate != source_rate:
            if resampler and len(rest := resampler.resample_chunk(np.zeros(0, np.float32), last=True)):
                count += len(rest)
                yield rest
            source_rate = block_rate
            same = block_rate in (0, rate)
            resampler = None if same else soxr.ResampleStream(block_rate, rate, 1, dtype="float32", quality="HQ")
        if len(resampled := resampler.resample_chunk(block) if resampler else block):
            count += len(resampled)
            yield resampled
    if not count:
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
