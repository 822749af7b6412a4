"""Pages of Ogg files: links of a chain, missing end-of-stream flags, and pages that break off (RFC 3533)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from runtime.audio.containers.byte_ranges import ByteRanges, ByteStream, read_at
from runtime.errors import AudioInvalidError

_MAGIC = b"OggS"
_HEADER = 27
_CONTINUED, _FIRST, _LAST = 1, 2, 4  # bits of a page's flags
_BLOCK = 1 << 16
_POLYNOMIAL = 0x04C11DB7


@dataclass(slots=True)
class Link:
    """One link of a chain: a complete physical stream, which can have several logical ones.

    Attributes:
        start: offset of its first page.
        end: offset after its last page.
        last_page: offset of the last page.
        ended: serial numbers whose last page has the end-of-stream flag.
        serials: serial numbers of the logical streams.
    """

    start: int
    end: int
    last_page: int
    serials: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)

    @property
    def streams(self) -> int:
        """Number of logical streams."""
        return len(self.serials)


def links(stream: ByteStream, size: int, name: str) -> list[Link]:
    """Return the links of an Ogg file.

    Raises:
        AudioInvalidError: the last page or its last packet breaks off.
    """
    found: list[Link] = []
    offset, body_seen, continues = 0, False, False
    while offset < size:
        head = read_at(stream, offset, _HEADER + 255)
        if not head.startswith(_MAGIC):
            if _MAGIC.startswith(head[:4]):
                raise _truncated(name)
            following = _find(stream, offset, size)
            if following is None:
                break  # what follows the last page is no part of the stream
            offset = following
            continue
        table = head[_HEADER : _HEADER + head[26]] if len(head) >= _HEADER else b""
        end = offset + _HEADER + len(table) + sum(table)
        if len(head) < _HEADER or len(table) < head[26] or end > size:
            raise _truncated(name)
        flags, serial = head[5], int.from_bytes(head[14:18], "little")
        if not found or (flags & _FIRST and body_seen):
            found.append(Link(offset, end, offset))
            body_seen = False
        link = found[-1]
        body_seen = body_seen or not flags & _FIRST
        link.end, link.last_page = end, offset
        link.serials.add(serial)
        if flags & _LAST:
            link.ended.add(serial)
        continues = bool(table) and table[-1] == 255 and not flags & _LAST
        offset = end
    if continues:
        raise _truncated(name)
    return found


def _truncated(name: str) -> AudioInvalidError:
    return AudioInvalidError(f"{name}: is truncated: its last Ogg page breaks off; copy it again")


def _find(stream: ByteStream, offset: int, size: int) -> int | None:
    """Return the offset of the next page."""
    while offset < size:
        block = read_at(stream, offset, _BLOCK)
        index = block.find(_MAGIC)
        if index >= 0:
            return offset + index
        if len(block) < _BLOCK:
            break
        offset += _BLOCK - 3
    return None


def link_stream(stream: ByteStream, link: Link, size: int) -> ByteStream:
    """Return a link as a stream of its own. Its last page gets the end-of-stream flag, without which Opus is refused.

    Recorders that are stopped leave the flag out.
    """
    if len(link.serials) > 1 or link.ended:
        return stream if (link.start, link.end) == (0, size) else ByteRanges(stream, [(link.start, link.end)])
    page = bytearray(read_at(stream, link.last_page, link.end - link.last_page))
    page[5] |= _LAST
    page[22:26] = bytes(4)
    page[22:26] = checksum(bytes(page)).to_bytes(4, "little")
    return ByteRanges(stream, [(link.start, link.last_page), bytes(page)])


def checksum(page: bytes) -> int:
    """Return the checksum of a page whose checksum field is zero."""
    table, value = _table(), 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ table[value >> 24 ^ byte]
    return value


@cache
def _table() -> tuple[int, ...]:
    values = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ (_POLYNOMIAL if value >> 31 else 0)) & 0xFFFFFFFF
        values.append(value)
    return tuple(values)
