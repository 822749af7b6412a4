"""Recognize containers that break off: their headers declare boxes, elements or packets beyond the end of the file.

A declared duration is not looked at: it belongs to all tracks of a file, or is an estimate.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.audio.containers.byte_ranges import ByteStream, read_at
from runtime.audio.containers.riff import UNKNOWN_LENGTH

Check = Callable[[ByteStream, int], bool]

# Matroska: elements of which the size is unknown while a program writes them.
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_OPEN_ELEMENTS = (_SEGMENT, _CLUSTER)
# ASF, as stored: GUID of the object with all packets.
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
# Boxes of MP4 whose loss does not matter.
_FILLER = (b"free", b"skip", b"wide", b"uuid")
_BLOCK = 1 << 16
# Bit rates of AC-3 by half the frame size code.
_AC3_SYNC = b"\x0b\x77"
_AC3_KILOBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
# Bytes of an AMR frame behind its first one, by mode; 8 and 9 are comfort noise. Other modes carry no samples.
_AMR_NARROW = (12, 13, 15, 17, 19, 20, 26, 31, 5)
_AMR_WIDE = (17, 23, 32, 36, 40, 46, 50, 58, 60, 5)


def breaks_off(stream: ByteStream, size: int, format: str) -> bool:
    """Whether a container ends within an element that its headers declare.

    Args:
        stream: the file.
        size: bytes of the file.
        format: FFmpeg's name of the container, for example ``matroska``.
    """
    check = _CHECKS.get(format)
    return bool(check and check(stream, size))


def iff_breaks_off(stream: ByteStream, size: int) -> bool:
    """AIFF, AU, W64 and AVI: whether the size in the header exceeds the file's."""
    head = read_at(stream, 0, 40)
    declared = size
    if head[:4] == b"RIFF":
        declared = int.from_bytes(head[4:8], "little") + 8
    elif head[:4] == b"FORM":
        declared = int.from_bytes(head[4:8], "big") + 8
    elif head[:4] == b".snd":
        declared = int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
    elif head[:4] == b"riff" and head[24:28] == b"wave":  # Sony Wave64
        declared = int.from_bytes(head[16:24], "little")
    return size < declared - 1 and 8 < declared < UNKNOWN_LENGTH  # some programs omit one byte of padding


def _boxes_break_off(stream: ByteStream, size: int) -> bool:
    """ISO 14496-12: boxes at the top of an MP4."""
    offset = 0
    while offset < size:
        head = read_at(stream, offset, 16)
        if len(head) < 8:
            return offset > 0 and bool(head.strip(b"\0"))
        if not head[4:8].isalnum():
            return False
        length, least = int.from_bytes(head[:4], "big"), 8
        if length == 1:
            length, least = int.from_bytes(head[8:16], "big"), 16
        if length == 0:  # up to the end
            return False
        if length < least:
            return False
        if offset + length > size:
            return head[4:8] not in _FILLER
        offset += length
    return False


def _elements_break_off(stream: ByteStream, size: int) -> bool:
    """RFC 8794: elements of Matroska and WebM."""
    offset = 0
    while offset < size:
        head = read_at(stream, offset, 12)
        id_length = 9 - head[0].bit_length() if head[0] else 9
        if id_length > 4:
            return False  # damaged, or behind the last element
        if len(head) <= id_length:
            return True
        size_length = 9 - head[id_length].bit_length() if head[id_length] else 9
        if size_length > 8:
            return False
        if len(head) < id_length + size_length:
            return True
        identifier = int.from_bytes(head[:id_length], "big")
        mask = (1 << 7 * size_length) - 1
        length = int.from_bytes(head[id_length : id_length + size_length], "big") & mask
        offset += id_length + size_length
        if length == mask and identifier in _OPEN_ELEMENTS:
            continue
        if offset + length > size:
            return True
        offset += length
    return False


def _tags_break_off(stream: ByteStream, size: int) -> bool:
    """FLV: each tag is followed by its size."""
    if size >= 15:
        last = int.from_bytes(read_at(stream, size - 4, 4), "big")
        if 11 <= last <= size - 13 and int.from_bytes(read_at(stream, size - 3 - last, 3), "big") == last - 11:
            return False
    offset = int.from_bytes(read_at(stream, 5, 4), "big")
    while offset + 4 < size:
        head = read_at(stream, offset + 4, 11)
        if head[:1] not in (b"\x08", b"\x09", b"\x12"):
            return False
        offset += 15 + int.from_bytes(head[1:4], "big")
        if len(head) < 11 or offset > size:
            return True
    return False


def _packets_break_off(stream: ByteStream, size: int) -> bool:
    """MPEG-TS: packets of 188 bytes, or with time codes or checksums of 192 and 204."""
    head = read_at(stream, 0, 1024)
    for length, first in ((188, 0), (192, 4), (204, 0)):
        if all(head[offset : offset + 1] in (b"G", b"") for offset in range(first, 1024, length)):
            return size % length != 0
    return False


def _objects_break_off(stream: ByteStream, size: int) -> bool:
    """ASF: the object with all packets; a broadcast declares no size."""
    header_size = int.from_bytes(read_at(stream, 16, 8), "little")
    header = read_at(stream, 0, min(header_size, 1 << 20))
    properties = header.find(_ASF_FILE_PROPERTIES)
    if header_size + 24 > size or (properties >= 0 and header[properties + 88 : properties + 89] == b"\x01"):
        return header_size + 24 > size
    data = read_at(stream, header_size, 24)
    return data[:16] == _ASF_DATA and header_size + int.from_bytes(data[16:], "little") > size


def _chunks_break_off(stream: ByteStream, size: int) -> bool:
    """CAF: chunks, of which the one with the samples may be of unknown length."""
    offset = 8
    while offset + 12 <= size:
        length = int.from_bytes(read_at(stream, offset + 4, 8), "big", signed=True)
        if length < 0:
            return False
        offset += 12 + length
    return offset > size


def _ac3_breaks_off(stream: ByteStream, size: int) -> bool:
    """AC-3 and E-AC-3 (ETSI TS 102 366): frames that declare their size."""
    offset = 0
    while offset < size:
        head = read_at(stream, offset, 6)
        if head[:2] != _AC3_SYNC:
            return offset + len(head) == size and head == _AC3_SYNC[: len(head)]
        if len(head) < 6:
            return True
        if head[5] >> 3 > 10:  # E-AC-3
            words = ((head[2] & 7) << 8 | head[3]) + 1
        else:
            rate, code = head[4] >> 6, head[4] & 63
            if rate == 3 or code >= 2 * len(_AC3_KILOBITS):
                return False
            kilobits = _AC3_KILOBITS[code >> 1]
            # 1536 samples in words of 16 bits; at 44.1 kHz, every other size is rounded up.
            words = (2 * kilobits, 96_000 * kilobits // 44_100 + (code & 1), 3 * kilobits)[rate]
        offset += 2 * words
    return offset > size


def _amr_breaks_off(stream: ByteStream, size: int) -> bool:
    """AMR (RFC 4867): frames whose size depends on their mode."""
    is_wide = read_at(stream, 0, 9) == b"#!AMR-WB\n"
    offset, sizes = (9, _AMR_WIDE) if is_wide else (6, _AMR_NARROW)
    while offset < size:
        start, block = offset, read_at(stream, offset, _BLOCK)
        if not block:
            break
        while offset - start < len(block):
            mode = block[offset - start] >> 3 & 15
            offset += 1 + (sizes[mode] if mode < len(sizes) else 0)
    return offset > size


_CHECKS: dict[str, Check] = {
    "mov": _boxes_break_off,
    "matroska": _elements_break_off,
    "avi": iff_breaks_off,
    "flv": _tags_break_off,
    "mpegts": _packets_break_off,
    "asf": _objects_break_off,
    "caf": _chunks_break_off,
    "ac3": _ac3_breaks_off,
    "amr": _amr_breaks_off,
}
