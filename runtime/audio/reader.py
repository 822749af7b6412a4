"""Audio of any container, rate and channel count as mono float32 at the model's rate, block by block."""

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

from runtime.audio.decoders import BLOCK_SECONDS, Decoded, Nameless, block_frames, decoder
from runtime.errors import AsrError, AudioInvalidError, AudioNotFoundError, OptionError

__all__ = ["BLOCK_SECONDS", "AudioReader", "Floats", "Source", "from_array", "load_audio", "open_array", "open_audio"]

Floats = npt.NDArray[np.float32]
Source = str | os.PathLike[str] | BinaryIO

# What comes through a pipe is kept for decoders that seek: in memory up to this, in a temporary file beyond.
_SPOOL_BYTES = 1 << 24


class AudioReader:
    """Opened audio, decoded as it is asked for: an hour of 48 kHz stereo never lies in memory.

    Attributes:
        duration: seconds, as the header declares them; None where it does not.
    """

    def __init__(self, blocks: Generator[Floats, None, None], duration: float | None, resources: ExitStack) -> None:
        self.duration = duration
        self._blocks = blocks
        self._resources = resources

    def blocks(self) -> Iterator[Floats]:
        """Mono float32 samples, at most about ten seconds each and none empty; once through.

        Raises:
            AudioInvalidError: what follows is damaged, truncated, not finite, or there is no sample at all.
        """
        return self._blocks

    def close(self) -> None:
        """Close the file; :meth:`blocks` end."""
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
        source: a path, or a binary stream (need not be seekable; it stays the caller's, who closes it afterwards).
        rate: the result's sampling rate in Hz.
        channel: take this channel, counted from 0, instead of the mean of all.
        name: what messages call a stream.

    Raises:
        AudioNotFoundError: no such file.
        AudioInvalidError: a folder, empty, not audio, or truncated as far as the header tells.
        AudioUnsupportedError: the container needs the optional package PyAV.
        OptionError: the audio has no such channel.
    """
    with ExitStack() as opened:
        if isinstance(source, (str, os.PathLike)):
            name, stream = str(Path(source)), _open_file(Path(source), opened)
        else:
            stream = _rewindable(source, name, opened)
        with _said_in_one_sentence(name):
            sound = decoder(stream, name, opened)
        _check_channel(sound, channel)
        return _reader(sound, rate, channel, opened.pop_all())


def open_array(samples: npt.NDArray[Any], sample_rate: int, rate: int, channel: int | None = None) -> AudioReader:
    """The same for samples from memory.

    Args:
        samples: [n] or [n, channels]; floats in [-1, 1], or integers, which are scaled by their type's range.
        sample_rate: their rate in Hz.
        rate: the result's rate in Hz.
        channel: as in :func:`open_audio`.

    Raises:
        AudioInvalidError: an array of another shape or type, or a rate that is not positive.
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
    sound = Decoded("audio array", sample_rate, array.shape[1], len(array) / sample_rate, pieces)
    _check_channel(sound, channel)
    return _reader(sound, rate, channel, ExitStack())


def load_audio(source: Source, rate: int, channel: int | None = None) -> Floats:
    """All blocks of :func:`open_audio` as one array. Raises what it and :meth:`AudioReader.blocks` raise."""
    with open_audio(source, rate, channel) as reader:
        return np.concatenate(list(reader.blocks()))


def from_array(samples: npt.NDArray[Any], sample_rate: int, rate: int, channel: int | None = None) -> Floats:
    """All blocks of :func:`open_array` as one array."""
    with open_array(samples, sample_rate, rate, channel) as reader:
        return np.concatenate(list(reader.blocks()))


def _as_floats(block: npt.NDArray[Any]) -> Floats:
    if block.dtype.kind in "iu":
        half = (float(np.iinfo(block.dtype).max) + 1.0) / (1 if block.dtype.kind == "i" else 2)
        block = (block.astype(np.float64) - (0.0 if block.dtype.kind == "i" else half)) / half
    return block.astype(np.float32, copy=False)


def _check_channel(sound: Decoded, channel: int | None) -> None:
    if channel is not None and not 0 <= channel < sound.channels:
        raise OptionError(f"{sound.name}: has no channel {channel}; it has {sound.channels}, counted from 0")


def _reader(sound: Decoded, rate: int, channel: int | None, resources: ExitStack) -> AudioReader:
    """``sound`` mixed, checked and resampled."""
    blocks = _resampled(_mono(sound, channel), sound.rate, rate, sound.name)
    return AudioReader(_translated(blocks, sound.name), sound.duration, resources)


def _mono(sound: Decoded, channel: int | None) -> Iterator[Floats]:
    seen = 0
    for piece in sound.pieces:
        mono = piece[:, channel] if channel is not None else piece.mean(axis=1, dtype=np.float32)
        finite = np.isfinite(mono)
        if not finite.all():
            index = seen + int(np.argmin(finite))
            raise AudioInvalidError(f"{sound.name}: sample {index} ({index / sound.rate:.3f} s) is not a finite number")
        seen += len(mono)
        if len(mono):
            yield np.ascontiguousarray(mono, np.float32)
    if seen == 0:
        raise AudioInvalidError(f"{sound.name}: holds no samples")


def _resampled(blocks: Iterator[Floats], source_rate: int, rate: int, name: str) -> Iterator[Floats]:
    if source_rate == rate:
        yield from blocks
        return
    resampler = soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality="HQ")
    seen = 0
    for block in blocks:
        if len(made := resampler.resample_chunk(block)):
            seen += len(made)
            yield made
    if len(made := resampler.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield made
    elif not seen:
        raise AudioInvalidError(f"{name}: is shorter than one sample at {rate} Hz")


@contextmanager
def _said_in_one_sentence(name: str) -> Iterator[None]:
    """What the system refuses becomes an error of ours."""
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


def _translated(blocks: Iterator[Floats], name: str) -> Generator[Floats, None, None]:
    with _said_in_one_sentence(name):
        yield from blocks


def _open_file(path: Path, opened: ExitStack) -> Nameless:
    with _said_in_one_sentence(str(path)):
        if path.is_dir():
            raise AudioInvalidError(f"{path}: is a folder, not an audio file")
        stream = opened.enter_context(path.open("rb"))
        return Nameless(stream) if stream.seekable() else _spooled(stream, str(path), opened)  # a named pipe is not


def _rewindable(stream: BinaryIO, name: str, opened: ExitStack) -> Nameless:
    """``stream`` itself where decoders can seek in all of it, else what is left of it."""
    if isinstance(stream, (io.BytesIO, io.BufferedReader, tempfile.SpooledTemporaryFile)):
        with _said_in_one_sentence(name):
            if stream.seekable() and not stream.tell():
                return Nameless(cast("IO[bytes]", stream))
    return _spooled(stream, name, opened)


def _spooled(stream: IO[bytes], name: str, opened: ExitStack) -> Nameless:
    """What is left of ``stream``, kept where a decoder can seek."""
    kept = opened.enter_context(tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES))  # noqa: SIM115 (it is one)
    with _said_in_one_sentence(name):
        try:
            shutil.copyfileobj(stream, kept)
        except TypeError:
            raise AudioInvalidError(f"{name}: is a stream of text, not of bytes; open it in binary mode") from None
    return Nameless(cast("IO[bytes]", kept))
