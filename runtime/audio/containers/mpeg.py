"""Frames of MPEG audio (MP3, MP2): exact lengths, files joined to one, and frames that break off.

libsndfile reads up to the length that the first Xing header declares, or an estimate from the first bit rate. The first
leaves out joined files, the second can be too short. So each recording in a file becomes a stream of its own, with a
Xing header of the right length.

Sources: ISO 11172-3 and 13818-3 (frame headers), the Xing, VBRI and ID3v2.4 descriptions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.audio.containers.byte_ranges import ByteRanges, ByteStream, Range, read_at
from runtime.errors import AudioInvalidError

# Bits of a frame header that do not change within a stream: sync, version, layer, sampling rate.
_FORMAT_MASK = 0xFFFE0C00
_BIT_RATES = {  # kbit/s by (MPEG-1?, layer), index 1 to 14
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44_100, 48_000, 32_000)
_MONO = 3
# Junk that is searched for the next frame: more is no part of a recording.
_LONGEST_JUNK = 1 << 20
_BLOCK = 1 << 20
# Encoders disagree by this number of frames about what the count of a Xing header includes.
_COUNT_TOLERANCE = 2
# A synthetic Xing header needs a frame of at least this size: header, side information, tag, flags and two numbers.
_SMALLEST_XING_FRAME = 4 + 32 + 4 + 12


@dataclass(frozen=True, slots=True)
class Frame:
    """Header of a frame.

    Attributes:
        bits: the four bytes of the header.
        length: bytes of the frame.
        samples: of each channel.
        rate: Hz.
        layer: 1, 2 or 3.
        tag_offset: offset of a Xing header in the frame (layer III).
    """

    bits: int
    length: int
    samples: int
    rate: int
    layer: int
    tag_offset: int


@dataclass(slots=True)
class Recording:
    """One recording in a file.

    Attributes:
        start: offset of its first frame.
        end: offset after its last frame.
        first: header of the first frame.
        count: frames of audio, without a Xing header.
        declared: frames that its Xing or VBRI header declares; None without a header.
        tagged: whether the first frame is a Xing or VBRI header.
    """

    start: int
    end: int
    first: Frame
    count: int = 0
    declared: int | None = None
    tagged: bool = False

    @property
    def seconds(self) -> float:
        """Length of the audio in seconds."""
        return self.count * self.first.samples / self.first.rate


_parsed: dict[int, Frame | None] = {}  # headers of a stream repeat; at most 2**16 valid ones exist


def parse_header(bits: int) -> Frame | None:
    """Return the frame that begins with these four bytes (big-endian); None if invalid or of free format."""
    try:
        return _parsed[bits]
    except KeyError:
        if bits >> 21 != 0x7FF:
            return None
        _parsed[bits] = frame = _parse(bits)
        return frame


def _parse(bits: int) -> Frame | None:
    version, layer = bits >> 19 & 3, 4 - (bits >> 17 & 3)
    bit_rate, rate, padding, mode = bits >> 12 & 15, bits >> 10 & 3, bits >> 9 & 1, bits >> 6 & 3
    if version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3 or bits & 3 == 2:
        return None
    mpeg1 = version == 3
    hertz = _RATES[rate] >> (0 if mpeg1 else 1 if version == 2 else 2)
    speed = _BIT_RATES[mpeg1, layer][bit_rate - 1] * 1000
    if layer == 1:
        samples, length = 384, (12 * speed // hertz + padding) * 4
    else:
        samples = 1152 if layer == 2 or mpeg1 else 576
        length = samples // 8 * speed // hertz + padding
    side = (17 if mode == _MONO else 32) if mpeg1 else (9 if mode == _MONO else 17)
    return Frame(bits, length, samples, hertz, layer, 4 + side)


def skip_tags(stream: ByteStream, offset: int, end: int) -> int:
    """Return the offset after ID3v2, ID3v1 and APE tags that begin at ``offset``."""
    while True:
        head = read_at(stream, offset, 32)
        if head.startswith(b"ID3") and len(head) >= 10 and max(head[6:10]) < 0x80:
            size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            step = 10 + size + (10 if head[5] & 0x10 else 0)
        elif head.startswith(b"TAG") and end - offset >= 128:
            step = 128
        elif head.startswith(b"APETAGEX") and len(head) == 32:
            is_header = int.from_bytes(head[20:24], "little") >> 29 & 1
            step = 32 + (int.from_bytes(head[12:16], "little") if is_header else 0)
        else:
            return offset
        if offset + step >= end:
            return end
        offset += step


class _Window:
    """A window over a stream, so that small reads at increasing offsets are fast."""

    def __init__(self, stream: ByteStream, end: int) -> None:
        self._stream, self.end = stream, end
        self._data, self._start = b"", 0

    def take(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes at ``offset``, or fewer at the end."""
        count = min(count, self.end - offset)
        if count <= 0:
            return b""
        first = offset - self._start
        if first < 0 or first + count > len(self._data):
            self._data = read_at(self._stream, offset, min(max(_BLOCK, count), self.end - offset))
            self._start, first = offset, 0
        return self._data[first : first + count]

    def header(self, offset: int) -> Frame | None:
        """Return the frame at ``offset``, if any."""
        data = self.take(offset, 4)
        return parse_header(int.from_bytes(data, "big")) if len(data) == 4 else None


def find_first(stream: ByteStream, start: int, end: int) -> int | None:
    """Return the offset of the first frame that another one follows, or None if none is near."""
    return _next_frame(_Window(stream, end), skip_tags(stream, start, end), None)


def _next_frame(window: _Window, offset: int, like: Frame | None) -> int | None:
    """Search for a frame from ``offset`` on that another one or the end follows."""
    limit = min(window.end, offset + _LONGEST_JUNK)
    while offset < limit:
        block = window.take(offset, 1 << 12)
        index = block.find(b"\xff")
        if index < 0:
            offset += len(block)
            continue
        offset += index
        frame = window.header(offset)
        if frame:
            after = offset + frame.length
            follower = window.header(after)
            if (follower and follower.bits & _FORMAT_MASK == frame.bits & _FORMAT_MASK) or (
                like and after == window.end and like.bits & _FORMAT_MASK == frame.bits & _FORMAT_MASK
            ):
                return offset
        offset += 1
    return None


def recordings(stream: ByteStream, start: int, end: int, name: str) -> list[Recording] | None:
    """Return the recordings between two offsets; None if no frames are found (free format, another codec).

    A file with one Xing header that declares its size is not walked.

    Raises:
        AudioInvalidError: the last frame breaks off, or a Xing header declares more frames than there are.
    """
    first = find_first(stream, start, end)
    if first is None:
        return None
    window = _Window(stream, end)
    whole = _declared_whole(stream, window, first)
    if whole:
        return [whole]
    found, broken = _walk(stream, window, first)
    last = found[-1]
    if broken:
        raise AudioInvalidError(
            f"{name}: is truncated: its last MPEG frame breaks off after "
            f"{sum(each.seconds for each in found):.2f} s; copy it again"
        )
    if last.declared is not None and last.count < last.declared - _COUNT_TOLERANCE:
        raise AudioInvalidError(
            f"{name}: is truncated: its header announces {last.declared} frames, only {last.count} are there; "
            "copy it again"
        )
    return found


def _tag(window: _Window, offset: int, frame: Frame) -> tuple[int | None, int | None] | None:
    """Return frames and bytes that a Xing or VBRI header in the frame declares; None without such a header."""
    if frame.layer != 3:
        return None
    data = window.take(offset, frame.tag_offset + 16)[frame.tag_offset :]
    if data[:4] in (b"Xing", b"Info"):
        flags = int.from_bytes(data[4:8], "big")
        count = int.from_bytes(data[8:12], "big") if flags & 1 else None
        position = 12 if flags & 1 else 8
        size = int.from_bytes(data[position : position + 4], "big") if flags & 2 else None
        return count, size
    data = window.take(offset + 36, 18)  # VBRI stands behind 32 bytes, for mono and stereo
    if data[:4] == b"VBRI":
        return int.from_bytes(data[14:18], "big"), int.from_bytes(data[10:14], "big")
    return None


def _declared_whole(stream: ByteStream, window: _Window, first: int) -> Recording | None:
    """Return the recording that fills the file according to its Xing header; None if that must be checked."""
    frame = window.header(first)
    assert frame
    tag = _tag(window, first, frame)
    if not tag or not tag[0] or not tag[1]:
        return None
    # Some encoders leave the header itself out of the size.
    for last in (first + tag[1], first + frame.length + tag[1]):
        if last <= window.end and skip_tags(stream, last, window.end) >= window.end - 3:
            return Recording(first, last, frame, tag[0], tag[0], tagged=True)
    return None


def _walk(stream: ByteStream, window: _Window, offset: int) -> tuple[list[Recording], bool]:
    """Return all recordings from ``offset`` on, and whether the last frame breaks off."""
    found: list[Recording] = []
    current: Recording | None = None
    end = window.end
    while True:
        frame = window.header(offset)
        if frame is None:
            broken = offset < end < offset + 4 and window.take(offset, 1) == b"\xff"
            after = skip_tags(stream, offset, end)
            following = None if broken else _next_frame(window, after, current.first if current else None)
            if following is None:
                return found, broken
            offset = following
            continue
        if offset + frame.length > end:
            return found, True
        tag = _tag(window, offset, frame)
        if current is None or tag or _differs(current.first, frame):
            current = Recording(offset, offset, frame, tagged=tag is not None, declared=tag[0] if tag else None)
            found.append(current)
            current.count -= current.tagged
        current.count += 1
        offset += frame.length
        current.end = offset


def _differs(first: Frame, frame: Frame) -> bool:
    """Whether a frame belongs to another recording: another format, and for layers I and II another bit rate."""
    if first.bits & _FORMAT_MASK != frame.bits & _FORMAT_MASK or (first.bits >> 6 & 3 == _MONO) != (
        frame.bits >> 6 & 3 == _MONO
    ):
        return True
    return first.layer != 3 and first.bits >> 12 & 15 != frame.bits >> 12 & 15


def streams(stream: ByteStream, found: Sequence[Recording]) -> list[ByteStream]:
    """Return a stream for each recording, with a header of the exact length where the recording has none."""
    return [_with_length(stream, each) for each in found if each.count > 0]


def _with_length(stream: ByteStream, recording: Recording) -> ByteStream:
    frames: Range = (recording.start, recording.end)
    first = recording.first
    if first.layer != 3 or (recording.declared and abs(recording.count - recording.declared) <= _COUNT_TOLERANCE):
        return ByteRanges(stream, [frames])
    if recording.tagged:  # the header declares another length
        frames = (recording.start + first.length, recording.end)
    return ByteRanges(stream, [_xing(first, recording.count, frames[1] - frames[0]), frames])


def _xing(first: Frame, count: int, size: int) -> bytes:
    """Return a Xing header frame for ``count`` frames of ``size`` bytes in the format of ``first``."""
    for index in range(1, 15):
        # No checksum, no padding, and the lowest bit rate whose frame holds the header.
        bits = first.bits & ~0xF200 | 0x10000 | index << 12
        frame = parse_header(bits)
        if frame and frame.length >= _SMALLEST_XING_FRAME:
            break
    assert frame
    body = bytes(frame.tag_offset - 4) + b"Xing" + struct.pack(">III", 3, count, min(size + frame.length, 2**32 - 1))
    return (bits.to_bytes(4, "big") + body).ljust(frame.length, b"\0")
