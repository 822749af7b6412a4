"""FLAC files whose header declares no length, and files of several FLAC streams (RFC 9639)."""

from __future__ import annotations

from functools import cache

from runtime.audio.containers.byte_ranges import ByteRanges, ByteStream, read_at
from runtime.audio.containers.mpeg import skip_tags
from runtime.errors import AudioInvalidError

# Magic, then the header of the STREAMINFO block: type 0, 34 bytes. Bit 7 of the type marks the last block.
_STARTS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
_INFO_SIZE = 34
_TOTAL_OFFSET = 8 + 13  # of the byte whose lower half begins the 36 bits of the number of samples
_BLOCK = 1 << 20
# Frames are at most this long: eight channels of 65,535 samples of 32 bits. Usual ones have 16 KiB.
_LONGEST_FRAME = 1 << 21
_ID3V1 = 128
# Places that look like the header of the last frame: samples can, by chance. More are earlier frames of a cut file.
_ATTEMPTS = 8


def streams(stream: ByteStream, size: int, name: str) -> list[ByteStream]:
    """Return the FLAC streams of a file, each with its number of samples in its header.

    Raises:
        AudioInvalidError: a stream of unknown length ends within a frame.
    """
    starts = _starts(stream, size)
    if not starts:
        return [stream]
    ends = [*starts[1:], size]
    whole = len(starts) == 1
    return [
        _with_length(stream, start, end, name, whole=whole and start == 0)
        for start, end in zip(starts, ends, strict=True)
    ]


def _starts(stream: ByteStream, size: int) -> list[int]:
    """Return the offsets of all FLAC streams. The rest of a file is searched only where the magic stands there too."""
    found: list[int] = []
    offset = 0
    while offset < size:
        block = read_at(stream, offset, _BLOCK + 7)
        index = block.find(b"fLaC")
        while 0 <= index < _BLOCK:
            if block[index : index + 8] in _STARTS:
                found.append(offset + index)
            index = block.find(b"fLaC", index + 1)
        offset += _BLOCK
    return found


def _with_length(stream: ByteStream, start: int, end: int, name: str, *, whole: bool) -> ByteStream:
    head = read_at(stream, start, 8 + _INFO_SIZE)
    total = int.from_bytes(head[_TOTAL_OFFSET : _TOTAL_OFFSET + 5], "big") & 0xFFFFFFFFF
    if total or len(head) < 8 + _INFO_SIZE:
        return stream if whole else ByteRanges(stream, [(start, end)])
    total = _count_samples(stream, start, end, head[8:], name)
    patched = bytearray(head)
    patched[_TOTAL_OFFSET : _TOTAL_OFFSET + 5] = ((head[_TOTAL_OFFSET] & 0xF0) << 32 | total).to_bytes(5, "big")
    return ByteRanges(stream, [bytes(patched), (start + len(head), end)])


def _count_samples(stream: ByteStream, start: int, end: int, info: bytes, name: str) -> int:
    """Return the samples up to the last frame, whose header has its number and whose checksum covers it to the end."""
    if end - start > _ID3V1 and read_at(stream, end - _ID3V1, 3) == b"TAG":
        end -= _ID3V1
    fixed = int.from_bytes(info[:2], "big")
    length = min(end - start - 8 - _INFO_SIZE, _LONGEST_FRAME)
    tail = read_at(stream, end - length, length)
    index, attempts = len(tail), 0
    while (index := tail.rfind(b"\xff", 0, index)) >= 0 and attempts < _ATTEMPTS:
        last = _frame_end(tail[index : index + 16], fixed)
        if last is None:
            continue
        if checksum16(tail[index:]) == 0:
            return last
        attempts += 1
    if skip_tags(stream, start + 8 + _INFO_SIZE, end) >= end:
        return 0
    raise AudioInvalidError(f"{name}: is truncated: its last FLAC frame breaks off; copy it again")


def _frame_end(head: bytes, fixed: int) -> int | None:
    """Return the number of samples up to the end of the frame with this header; None if it is not a frame header.

    Args:
        head: 16 bytes.
        fixed: block size of streams of fixed block size.
    """
    if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[2] >> 4 == 0 or head[2] & 15 == 15 or head[3] & 1:
        return None
    number = _coded_number(head[4:])
    if number is None:
        return None
    value, used = number
    position, code = 4 + used, head[2] >> 4
    if code in (6, 7):
        width = code - 5
        block = int.from_bytes(head[position : position + width], "big") + 1
        position += width
    else:
        block = 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8
    position += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if position >= len(head) or checksum8(head[: position + 1]):
        return None
    return value + block if head[1] & 1 else value * fixed + block


def _coded_number(data: bytes) -> tuple[int, int] | None:
    """Decode a number in the extended UTF-8 of FLAC; return it and its bytes."""
    first = data[0]
    if first < 0x80:
        return first, 1
    used = next((bit for bit in range(8) if not first << bit & 0x80), 8)
    if not 2 <= used <= 7 or len(data) < used or any(byte & 0xC0 != 0x80 for byte in data[1:used]):
        return None
    value = first & 0x7F >> used
    for byte in data[1:used]:
        value = value << 6 | byte & 0x3F
    return value, used


def checksum8(data: bytes) -> int:
    """Return the CRC-8 (polynomial 7) of a frame header; 0 if the data end with their checksum."""
    value = 0
    for byte in data:
        value = _table(8, 0x07)[value ^ byte]
    return value


def checksum16(data: bytes) -> int:
    """Return the CRC-16 (polynomial 0x8005) of a frame; 0 if the data end with their checksum."""
    table, value = _table(16, 0x8005), 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ table[value >> 8 ^ byte]
    return value


@cache
def _table(width: int, polynomial: int) -> tuple[int, ...]:
    top, mask = 1 << width - 1, (1 << width) - 1
    values = []
    for byte in range(256):
        value = byte << width - 8
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value & top else 0)) & mask
        values.append(value)
    return tuple(values)
