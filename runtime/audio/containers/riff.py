"""Chunks of WAV files: several data chunks, several files in one, and chunks that break off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from runtime.audio.containers.byte_ranges import ByteRanges, ByteStream, Range, read_at
from runtime.errors import AudioInvalidError

# Programs that write a WAV to a pipe do not know its length and write 0, or at least this number, into the header.
UNKNOWN_LENGTH = 0x7FFFF000

_MPEG_LAYER_3, _MPEG = 0x55, 0x50  # format tags of the WAVE registry (RFC 2361)
_ORDERS: dict[bytes, Literal["little", "big"]] = {
    b"RIFF": "little",
    b"RF64": "little",
    b"BW64": "little",
    b"RIFX": "big",
}


@dataclass(slots=True)
class Wave:
    """One WAV in a file.

    Attributes:
        start: offset of its first byte.
        end: offset after its last byte.
        tag: format tag; 0 without a format chunk.
        data: ranges of its samples.
        size_offset: offset of the size of the first data chunk.
        order: byte order.
    """

    start: int
    end: int
    order: Literal["little", "big"]
    tag: int = 0
    data: list[Range] = field(default_factory=list)
    size_offset: int = 0

    @property
    def is_mpeg(self) -> bool:
        """Whether the samples are MP3 or MP2."""
        return self.tag in (_MPEG, _MPEG_LAYER_3)


def is_wave(head: bytes) -> bool:
    """Whether the first 12 bytes begin a WAV."""
    return head[:4] in _ORDERS and head[8:12] == b"WAVE"


def waves(stream: ByteStream, size: int, name: str) -> list[Wave]:
    """Return the WAVs of a file, which are usually one.

    Raises:
        AudioInvalidError: a data chunk breaks off, or the file ends before its data chunk.
    """
    found: list[Wave] = []
    start = 0
    while is_wave(head := read_at(stream, start, 12)):
        wave = _wave(stream, start, size, head, name)
        if found and not wave.data:
            break
        found.append(wave)
        start = wave.end
    return found


def _wave(stream: ByteStream, start: int, size: int, head: bytes, name: str) -> Wave:
    order = _ORDERS[head[:4]]
    declared = int.from_bytes(head[4:8], order)
    known = 0 < declared < UNKNOWN_LENGTH
    # A second WAV can only be recognized behind one of known length.
    wave = Wave(start, min(start + 8 + declared + declared % 2, size) if known else size, order)
    long_data = None
    for chunk, first, length in _chunks(stream, start + 12, size, order):
        if known and first - 8 >= start + 8 + declared and read_at(stream, start + 8 + declared, 4) in _ORDERS:
            break
        if chunk == b"ds64":  # EBU Tech 3306: 64-bit sizes of the file and of the samples
            sizes = read_at(stream, first, 16)
            declared, long_data = (int.from_bytes(sizes[begin : begin + 8], order) for begin in (0, 8))
            known, wave.end = declared > 0, min(start + 8 + declared, size)
        elif chunk == b"fmt ":
            wave.tag = int.from_bytes(read_at(stream, first, 2), order)
        elif chunk == b"data":
            if long_data and length >= UNKNOWN_LENGTH:
                length = long_data
            open_end = length >= UNKNOWN_LENGTH and not long_data
            end = size if open_end or (not length and not known) else first + length
            if end > size:
                raise AudioInvalidError(
                    f"{name}: is truncated: its header announces {length} bytes of samples, the file has "
                    f"{size - first}; copy it again"
                )
            wave.size_offset = wave.size_offset or first - 4
            wave.data.append((first, end))
            if end == size:
                break
    if not wave.data and known and start + 8 + declared > size + 1:
        raise AudioInvalidError(
            f"{name}: is truncated: its header announces {declared + 8} bytes, the file has {size - start}; "
            "copy it again"
        )
    return wave


def _chunks(
    stream: ByteStream, offset: int, size: int, order: Literal["little", "big"]
) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset of the first byte and length of each chunk, up to the first one that is malformed."""
    while offset + 8 <= size:
        head = read_at(stream, offset, 8)
        if not head[:4].isascii() or not head[:4].decode().isprintable():
            return
        length = int.from_bytes(head[4:], order)
        yield head[:4], offset + 8, length
        if head[:4] == b"data" and length >= UNKNOWN_LENGTH:
            length = 0 if offset + 8 + length > size else length
        offset += 8 + length + length % 2


def streams(stream: ByteStream, found: list[Wave]) -> list[ByteStream]:
    """Return a stream with a single data chunk for each WAV."""
    return [_single(stream, wave, whole=len(found) == 1) for wave in found]


def _single(stream: ByteStream, wave: Wave, *, whole: bool) -> ByteStream:
    if len(wave.data) < 2:
        return stream if whole else ByteRanges(stream, [(wave.start, wave.end)])
    total = min(sum(end - start for start, end in wave.data), 0xFFFFFFFF)
    head = bytearray(read_at(stream, wave.start, wave.data[0][0] - wave.start))
    position = wave.size_offset - wave.start
    head[4:8] = min(len(head) + total - 8, 0xFFFFFFFF).to_bytes(4, wave.order)
    head[position : position + 4] = total.to_bytes(4, wave.order)
    return ByteRanges(stream, [bytes(head), *wave.data])
