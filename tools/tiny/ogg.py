"""Set the serial number of Ogg streams: libsndfile chooses a random one, so its files are not reproducible.

The page layout is that of RFC 3533, section 6.
"""

from __future__ import annotations

_POLYNOMIAL = 0x04C11DB7
_SERIAL, _CHECKSUM, _SEGMENTS, _TABLE = slice(14, 18), slice(22, 26), 26, 27


def _remainder(value: int) -> int:
    value <<= 24
    for _ in range(8):
        value = (value << 1) ^ (_POLYNOMIAL if value & 0x80000000 else 0)
    return value & 0xFFFFFFFF


_REMAINDERS = [_remainder(value) for value in range(256)]


def checksum(page: bytes | bytearray) -> int:
    """Return Ogg's CRC-32 of a page with a checksum field of zero: not reflected and starting from 0, unlike zlib's."""
    crc = 0
    for byte in page:
        crc = ((crc << 8) & 0xFFFFFFFF) ^ _REMAINDERS[(crc >> 24) ^ byte]
    return crc


def with_serial(stream: bytes, serial: int) -> bytes:
    """Return the stream with another serial number, and the checksums of all pages updated.

    Raises:
        ValueError: ``stream`` is not a sequence of Ogg pages.
    """
    pages, start = [], 0
    while start < len(stream):
        if stream[start : start + 4] != b"OggS":
            raise ValueError(f"no Ogg page at byte {start}")
        segments = stream[start + _SEGMENTS]
        end = start + _TABLE + segments + sum(stream[start + _TABLE : start + _TABLE + segments])
        page = bytearray(stream[start:end])
        page[_SERIAL], page[_CHECKSUM] = serial.to_bytes(4, "little"), bytes(4)
        page[_CHECKSUM] = checksum(page).to_bytes(4, "little")
        pages.append(bytes(page))
        start = end
    return b"".join(pages)
