"""Read audio from standard input while it is produced: raw samples, a WAV that is still being written, or a file.

The first bytes decide which of these it is, unless the caller declares raw samples. PCM in a WAV is read as it arrives,
with or without a valid length in its header. Other containers are read to their end first, because their decoders seek.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, cast

import msgspec
import numpy as np
import numpy.typing as npt

from runtime.audio.containers.riff import UNKNOWN_LENGTH
from runtime.audio.levels import cancel_warning, mix
from runtime.audio.live import LIVE_RATE, FileSource, Inbox, LiveSource
from runtime.audio.reader import open_audio
from runtime.audio.stream_resampler import HIGHEST_RATE, LOWEST_RATE
from runtime.errors import AudioInvalidError, OptionError

Read = Callable[[int], bytes]
"""Returns at most so many bytes as soon as there are any, and none at the end. Raises AudioInvalidError."""

NAME = "standard input"

# Bytes of one read: the capacity of a pipe.
_READ_BYTES = 1 << 16
# Audio that may wait for a slow model, in seconds, and in bytes for headers with a very high rate. With more, the
# program that writes to the pipe waits too.
_WAITING_SECONDS, _WAITING_BYTES = 10, 1 << 26
# Maximum size of what precedes the samples of a WAV; with more, such as pictures, it is read as a file.
_LONGEST_HEADER = 1 << 20

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_ENCODINGS = {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}


class Layout(msgspec.Struct, frozen=True):
    """Format of samples in bytes: little-endian, channels interleaved.

    Attributes:
        rate: Hz.
        channels: number of channels.
        tag: 1 for integers (unsigned at 8 bits), 3 for floats, as in a WAV.
        bits: of a sample.
        length: bytes of all samples as the header declares them; None if unknown.
    """

    rate: int = LIVE_RATE
    channels: int = 1
    tag: int = _PCM
    bits: int = 16
    length: int | None = None

    @property
    def frame(self) -> int:
        """Bytes of one frame, a sample of each channel."""
        return self.channels * self.bits // 8

    def decode(self, data: bytes) -> tuple[npt.NDArray[Any], bool]:
        """Convert whole frames to mono samples [n]: int16 mono unchanged, others as float32, channels averaged.

        Returns:
            The samples, and whether a channel was taken instead of the mean because the channels cancel one another.
        """
        if self.tag == _FLOAT:
            values = np.frombuffer(data, f"<f{self.bits // 8}")
        elif self.bits == 24:
            padded = np.zeros((len(data) // 3, 4), np.uint8)  # the value times 256, as int32
            padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            values = padded.view("<i4")[:, 0] / 2.0**31
        elif self.bits == 8:
            values = (np.frombuffer(data, np.uint8) - 128.0) / 128.0
        else:
            values = np.frombuffer(data, f"<i{self.bits // 8}")
            if self.channels == 1 and self.bits == 16:
                return values.astype(np.int16, copy=False), False
            values = values / 2.0 ** (self.bits - 1)
        with np.errstate(over="ignore", invalid="ignore"):  # samples that are not finite are refused later
            return mix(values.astype(np.float32).reshape(-1, self.channels), self.rate)


class PipeSource:
    """Samples from a pipe. A thread reads them as they arrive, so that the recording program need not wait."""

    def __init__(self, read: Read, layout: Layout, *, head: bytes = b"", warn: Callable[[str], object]) -> None:
        """Start reading.

        Args:
            read: reads the next bytes.
            layout: format of the samples.
            head: bytes of samples that were read before.
            warn: called with a message about problems that are not errors.
        """
        self.name, self.rate = NAME, layout.rate
        self._read, self._layout, self._head, self._warn = read, layout, head, warn
        self._inbox: Inbox[bytes] = Inbox(min(_WAITING_SECONDS * layout.rate * layout.frame, _WAITING_BYTES))
        self._stopped = False
        threading.Thread(target=self._listen, name=NAME, daemon=True).start()

    def _listen(self) -> None:
        data = self._head
        try:
            while data or (data := self._read(_READ_BYTES)):
                if not self._inbox.put(data, len(data)):
                    return
                data = b""
        except AudioInvalidError as error:
            self._inbox.end(error)
        else:
            self._inbox.end()

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """Yield mono samples [n] as they arrive, int16 or float32.

        Raises:
            AudioInvalidError: standard input cannot be read, has no samples, or ends before its declared length.
            AudioInvalidError: samples are not finite.
        """
        layout, rest, count, cancelled = self._layout, b"", 0, False  # count is in bytes
        for batch in self._inbox.batches():
            data = b"".join([rest, *batch])
            if layout.length is not None:
                data = data[: layout.length - count]  # other chunks of a WAV follow its samples
            whole = len(data) - len(data) % layout.frame
            data, rest = data[:whole], data[whole:]
            if data:
                samples, cancels = layout.decode(data)
                if cancels and not cancelled:
                    cancelled = True
                    self._warn(cancel_warning(NAME))
                self._check(samples, count // layout.frame)
                count += whole
                yield samples
        if self._stopped:
            return
        if not count:
            raise AudioInvalidError(f"{NAME}: holds no samples")
        if layout.length is not None and count + len(rest) < layout.length:
            raise AudioInvalidError(
                f"{NAME}: is truncated: its header announces {layout.length} bytes of samples, "
                f"only {count + len(rest)} arrived"
            )
        if rest:
            self._warn(f"{NAME}: ends in the middle of a sample; is it {layout.bits} bits?")

    def _check(self, samples: npt.NDArray[Any], first: int) -> None:
        """Raise AudioInvalidError for samples that are not finite; ``first`` is the index of the first sample."""
        finite = np.isfinite(samples)
        if not finite.all():
            index = first + int(np.argmin(finite))
            raise AudioInvalidError(f"{NAME}: sample {index} ({index / self.rate:.3f} s) is not a finite number")

    def stop(self) -> None:
        """End :meth:`blocks` after the audio received so far. Signal handlers may call it."""
        self._stopped = True
        self._inbox.end()

    def close(self) -> None:
        """Stop reading. Standard input itself stays open."""
        self._inbox.abandon()


def open_pipe(
    stream: BinaryIO, *, raw: bool = False, raw_rate: int | None = None, warn: Callable[[str], object]
) -> LiveSource:
    """Recognize the format of ``stream`` and read it as it arrives, if its container allows that.

    Args:
        stream: standard input as a binary stream.
        raw: the samples are s16le mono; do not look for a container.
        raw_rate: sampling rate of raw samples in Hz, 8000 to 192000; :data:`LIVE_RATE` if None. Implies ``raw``.
        warn: called with a message about problems that are not errors.

    Raises:
        OptionError: ``raw_rate`` is out of range.
        AudioInvalidError: the stream is empty, cannot be read, or is a container with damaged or truncated audio.
        AudioUnsupportedError: the container needs the optional package PyAV.
    """
    if raw_rate is not None and not LOWEST_RATE <= raw_rate <= HIGHEST_RATE:
        raise OptionError(f"the rate of raw samples must be {LOWEST_RATE} to {HIGHEST_RATE} Hz, not {raw_rate}")
    head = _Head(_reader(stream))
    if raw or raw_rate is not None:
        return PipeSource(head.read, Layout(rate=raw_rate or LIVE_RATE), warn=warn)
    if not head.has(1):
        raise AudioInvalidError(f"{NAME}: is empty (0 bytes)")
    head.has(16)
    if not is_container(head.data):
        return PipeSource(head.read, Layout(), head=head.data, warn=warn)
    if wav := _streamed_wav(head):
        layout, start = wav
        return PipeSource(head.read, layout, head=head.data[start:], warn=warn)
    whole = io.BufferedReader(_Replayed(head))
    return FileSource(open_audio(cast(BinaryIO, whole), LIVE_RATE, warn=warn), NAME)


def is_container(head: bytes) -> bool:
    """Whether the first 16 bytes belong to a container and not to raw samples.

    Every container has at least three fixed bytes, except MPEG audio, whose sync has two bytes that raw samples may
    have. For MPEG audio the rest of the frame's header must be valid, and layer I, whose sync equals two samples of -1,
    is not recognized.
    """
    form = head[8:12]
    return (
        (head[:4] in (b"RIFF", b"RIFX", b"RF64") and form == b"WAVE")
        or (head[:4] == b"FORM" and form in (b"AIFF", b"AIFC"))
        or head.startswith((b"fLaC", b"OggS", b"ID3", b".snd", b"caff", b"#!AMR", b"\x1aE\xdf\xa3"))
        or head.startswith((b"riff\x2e\x91\xcf\x11", b"0&\xb2u\x8ef\xcf\x11"))  # Sony Wave64, ASF
        or head[4:8] == b"ftyp"
        or _is_mpeg_audio(head)
    )


def _is_mpeg_audio(head: bytes) -> bool:
    """Whether a frame of MPEG audio layer II or III or of AAC in ADTS begins here (ISO 11172-3, 13818-3, 13818-7)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    if layer == 0:  # ADTS: 12 bits of sync, and an index of sampling rates that ends at 12
        return head[1] & 0xF0 == 0xF0 and head[2] >> 2 & 15 <= 12
    bitrate, rate, emphasis = head[2] >> 4, head[2] >> 2 & 3, head[3] & 3
    return layer != 3 and version != 1 and 0 < bitrate < 15 and rate != 3 and emphasis != 2


def _streamed_wav(head: _Head) -> tuple[Layout, int] | None:
    """Return the format of a WAV's samples and the index of the first one, or None if it must be read as a file.

    Programs that write to a pipe write 0, or at least :data:`UNKNOWN_LENGTH`, as the length.
    """
    if head.data[:4] != b"RIFF":
        return None
    index, layout = 12, None
    while head.has(index + 8):
        name, size = head.data[index : index + 4], int.from_bytes(head.data[index + 4 : index + 8], "little")
        index += 8
        if name == b"data":
            known = 0 < size < UNKNOWN_LENGTH
            return None if layout is None else (msgspec.structs.replace(layout, length=size if known else None), index)
        if index + size > _LONGEST_HEADER or not head.has(index + size):
            return None
        if name == b"fmt ":
            layout = _layout(head.data[index : index + size])
        index += size + size % 2
    return None


def _layout(chunk: bytes) -> Layout | None:
    """Parse a WAV's format chunk. Returns None unless it declares PCM of a supported kind."""
    tag, channels, rate, align, bits = (
        int.from_bytes(chunk[start:end], "little") for start, end in ((0, 2), (2, 4), (4, 8), (12, 14), (14, 16))
    )
    if tag == _EXTENSIBLE:
        tag = int.from_bytes(chunk[24:26], "little")
    layout = Layout(rate, channels, tag, bits)
    supported = (tag, bits) in _ENCODINGS and channels > 0 and align == layout.frame
    return layout if supported and LOWEST_RATE <= rate <= HIGHEST_RATE else None


class _Head:
    """The first bytes of a stream, read in advance.

    Attributes:
        data: bytes read so far by :meth:`has`.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self.data = b""

    def has(self, count: int) -> bool:
        """Wait until ``count`` bytes are in ``data``. Returns False if the stream ends before."""
        while len(self.data) < count:
            block = self.read(_READ_BYTES)
            if not block:
                return False
            self.data += block
        return True

    def read(self, count: int) -> bytes:
        """Return up to ``count`` bytes that follow ``data``.

        Raises:
            AudioInvalidError: the system cannot read the stream.
        """
        try:
            return self._read(count)
        except OSError as error:
            raise AudioInvalidError(f"{NAME}: cannot be read ({error.strerror})") from None


class _Replayed(io.RawIOBase):
    """The whole stream as a file: the bytes read in advance, then the rest."""

    def __init__(self, head: _Head) -> None:
        self._head, self._left = head, head.data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._left[: len(buffer)] or self._head.read(len(buffer))
        self._left = self._left[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def _reader(stream: BinaryIO) -> Read:
    """Return a function that reads the available bytes without waiting for more.

    It reads from the file descriptor if there is one: a thread that waits in Python's own buffer would keep the
    interpreter from exiting.
    """
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        return cast(Read, cast(io.BufferedReader, stream).read1)
    return partial(os.read, descriptor)
