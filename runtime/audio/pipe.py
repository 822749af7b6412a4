"""Audio from standard input while it is still being made: raw samples, a WAV that is written as it is read, or a file.

What it is, is seen from its first bytes, unless it is said to be raw. PCM in a WAV is taken as it comes, whatever its
header says of its length; other containers are read to their end first, because their decoders seek.
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

from runtime.audio.decoders import UNKNOWN_LENGTH
from runtime.audio.incoming import HIGHEST_RATE, LOWEST_RATE
from runtime.audio.live import LIVE_RATE, FileSource, Inbox, LiveSource
from runtime.audio.reader import open_audio
from runtime.errors import AudioInvalidError, OptionError

Read = Callable[[int], bytes]
"""At most so many bytes as soon as there are any; none at the end. Raises AudioInvalidError when it cannot."""

NAME = "standard input"

# One read: what a pipe holds.
_READ_BYTES = 1 << 16
# Audio that waits for a slow model, in seconds, and a bound for headers that announce absurdly many bytes a second;
# then whoever writes into the pipe waits too.
_WAITING_SECONDS, _WAITING_BYTES = 10, 1 << 26
# Whatever comes before the samples of a WAV; with more, such as pictures, it is read as a file.
_LONGEST_HEADER = 1 << 20

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_ENCODINGS = {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}


class Layout(msgspec.Struct, frozen=True):
    """How bytes are samples: little-endian, channels interleaved.

    ``tag`` is 1 for integers (unsigned at 8 bits), 3 for floats, as in a WAV; ``length`` the bytes that were announced,
    None when nobody knows.
    """

    rate: int = LIVE_RATE
    channels: int = 1
    tag: int = _PCM
    bits: int = 16
    length: int | None = None

    @property
    def frame(self) -> int:
        """Bytes of one sample of all channels."""
        return self.channels * self.bits // 8

    def decode(self, data: bytes) -> npt.NDArray[Any]:
        """Mono samples of whole frames: int16 as they are, everything else as float32, channels averaged."""
        if self.tag == _FLOAT:
            values = np.frombuffer(data, f"<f{self.bits // 8}")
        elif self.bits == 24:
            padded = np.zeros((len(data) // 3, 4), np.uint8)  # the value times 256, which is an int32
            padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            values = padded.view("<i4")[:, 0] / 2.0**31
        elif self.bits == 8:
            values = (np.frombuffer(data, np.uint8) - 128.0) / 128.0
        else:
            values = np.frombuffer(data, f"<i{self.bits // 8}")
            if self.channels == 1 and self.bits == 16:
                return values.astype(np.int16, copy=False)
            values = values / 2.0 ** (self.bits - 1)
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes no number is refused afterwards
            mono: npt.NDArray[np.float32] = values.astype(np.float32).reshape(-1, self.channels).mean(axis=1)
        return mono


class PipeSource:
    """Samples in a pipe, taken as they come by a thread of its own, so that whoever records need not wait."""

    def __init__(self, read: Read, layout: Layout, *, head: bytes = b"", warn: Callable[[str], object]) -> None:
        """Take ``head`` and then what ``read`` gives; ``warn`` is told what was wrong and stops nothing."""
        self.name, self.rate = NAME, layout.rate
        self._read, self._layout, self._head, self._warn = read, layout, head, warn
        self._inbox: Inbox[bytes] = Inbox(min(_WAITING_SECONDS * layout.rate * layout.frame, _WAITING_BYTES))
        self._stopped = False
        threading.Thread(target=self._listen, name="standard input", daemon=True).start()

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
        """See :meth:`LiveSource.blocks`."""
        layout, rest, seen = self._layout, b"", 0
        for batch in self._inbox.batches():
            data = b"".join([rest, *batch])
            if layout.length is not None:
                data = data[: layout.length - seen]  # what follows the samples in a WAV are other chunks
            whole = len(data) - len(data) % layout.frame
            data, rest = data[:whole], data[whole:]
            if data:
                samples = layout.decode(data)
                self._check(samples, seen // layout.frame)
                seen += whole
                yield samples
        if self._stopped:
            return
        if not seen:
            raise AudioInvalidError(f"{NAME}: holds no samples")
        if layout.length is not None and seen + len(rest) < layout.length:
            raise AudioInvalidError(
                f"{NAME}: is truncated: its header announces {layout.length} bytes of samples, "
                f"only {seen + len(rest)} came"
            )
        if rest:
            self._warn(f"{NAME}: ends in the middle of a sample; is it {layout.bits} bits?")

    def _check(self, samples: npt.NDArray[Any], seen: int) -> None:
        finite = np.isfinite(samples)
        if not finite.all():
            index = seen + int(np.argmin(finite))
            raise AudioInvalidError(f"{NAME}: sample {index} ({index / self.rate:.3f} s) is not a finite number")

    def stop(self) -> None:
        """See :meth:`LiveSource.stop`."""
        self._stopped = True
        self._inbox.end()

    def close(self) -> None:
        """See :meth:`LiveSource.close`; standard input itself stays open."""
        self._inbox.abandon()


def open_pipe(
    stream: BinaryIO, *, raw: bool = False, raw_rate: int | None = None, warn: Callable[[str], object]
) -> LiveSource:
    """Find out what comes through ``stream`` and take it as it comes, as far as its container allows.

    Args:
        stream: standard input, in bytes.
        raw: it is s16le mono, whatever the first bytes look like.
        raw_rate: the rate of raw samples in Hz, :data:`LIVE_RATE` when None; implies ``raw``.
        warn: told of what is odd and stops nothing.

    Raises:
        OptionError: a rate that no audio has.
        AsrError: nothing comes, or what :func:`runtime.audio.open_audio` raises.
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
    if found := _streamed_wav(head):
        layout, start = found
        return PipeSource(head.read, layout, head=head.data[start:], warn=warn)
    everything = io.BufferedReader(_Replayed(head))
    return FileSource(open_audio(cast(BinaryIO, everything), LIVE_RATE), NAME)


def is_container(head: bytes) -> bool:
    """Whether the first 16 bytes are those of a container, and not of raw samples.

    All of them are at least three given bytes except the sync of MPEG audio, two bytes which raw samples may have;
    there the rest of the frame's header must make sense, and layer I, whose sync is two samples of -1, is left out.
    """
    kind = head[8:12]
    return (
        (head[:4] in (b"RIFF", b"RIFX", b"RF64") and kind == b"WAVE")
        or (head[:4] == b"FORM" and kind in (b"AIFF", b"AIFC"))
        or head.startswith((b"fLaC", b"OggS", b"ID3", b".snd", b"caff", b"#!AMR", b"\x1aE\xdf\xa3"))
        or head.startswith((b"riff\x2e\x91\xcf\x11", b"0&\xb2u\x8ef\xcf\x11"))  # Sony Wave64, ASF
        or head[4:8] == b"ftyp"
        or _is_mpeg_audio(head)
    )


def _is_mpeg_audio(head: bytes) -> bool:
    """The header of a frame of MPEG audio layer II or III, or of AAC in ADTS (ISO 11172-3, 13818-3 and 13818-7)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    if layer == 0:  # ADTS: 12 bits of sync, and an index of sampling rates that ends at 12
        return head[1] & 0xF0 == 0xF0 and head[2] >> 2 & 15 <= 12
    bitrate, rate, emphasis = head[2] >> 4, head[2] >> 2 & 3, head[3] & 3
    return layer != 3 and version != 1 and 0 < bitrate < 15 and rate != 3 and emphasis != 2


def _streamed_wav(head: _Head) -> tuple[Layout, int] | None:
    """How the samples of a WAV lie, and where they begin; None when it must be read as a file.

    Programs that write into a pipe put 0, or 2 GiB and more, where the length belongs.
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
    """What a WAV's format chunk says; None when it is not PCM of a kind that is taken here."""
    tag, channels, rate, align, bits = (
        int.from_bytes(chunk[start:end], "little") for start, end in ((0, 2), (2, 4), (4, 8), (12, 14), (14, 16))
    )
    if tag == _EXTENSIBLE:
        tag = int.from_bytes(chunk[24:26], "little")
    layout = Layout(rate, channels, tag, bits)
    sound = (tag, bits) in _ENCODINGS and channels > 0 and align == layout.frame
    return layout if sound and LOWEST_RATE <= rate <= HIGHEST_RATE else None


class _Head:
    """The first bytes of a stream, looked at before they are taken."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.data = b""

    def has(self, count: int) -> bool:
        """Whether the stream has so many bytes; waits for them."""
        while len(self.data) < count:
            more = self.read(_READ_BYTES)
            if not more:
                return False
            self.data += more
        return True

    def read(self, count: int) -> bytes:
        """What follows :attr:`data`.

        Raises:
            AudioInvalidError: the system refuses.
        """
        try:
            return self._read(count)
        except OSError as error:
            raise AudioInvalidError(f"{NAME}: cannot be read ({error.strerror})") from None


class _Replayed(io.RawIOBase):
    """The whole stream as a file, beginning with what was looked at."""

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
    """Reads what is there without waiting for more.

    From the descriptor where there is one: a thread that waits in Python's own buffer at the end of the program would
    stop the interpreter from ending.
    """
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        return cast(Read, cast(io.BufferedReader, stream).read1)
    return partial(os.read, descriptor)
