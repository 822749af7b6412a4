"""Recognize containers by their first bytes, and say which decoder reads them."""

from __future__ import annotations

from runtime.audio.containers.byte_ranges import ByteStream, read_at
from runtime.audio.containers.mpeg import skip_tags

_CONTAINERS = (
    "3gp aac ac3 aif aiff amr au avi caf eac3 flac flv g722 g726 m4a m4b mka mkv mov mp2 mp3 mp4 mpga oga ogg opus spx "
    "tta w64 wav webm wma wv"
)
AUDIO_SUFFIXES = frozenset(f".{name}" for name in _CONTAINERS.split())

# Containers that PyAV reads, by FFmpeg's names. FFmpeg is told the name, so that it does not look for formats that open
# other files, such as playlists.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (4, b"wide", "mov"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "asf"),
    (0, b"FLV\x01", "flv"),
    (0, b"#!AMR", "amr"),
    (0, b"OggS", "ogg"),
    (0, b"fLaC", "flac"),
    (0, b"caff", "caf"),
    (0, b"FORM", "aiff"),
    (0, b".snd", "au"),
    (0, b"riff\x2e\x91\xcf\x11", "w64"),
    (0, b"wvpk", "wv"),
    (0, b"MAC ", "ape"),
    (0, b"TTA1", "tta"),
    (0, b"MPCK", "mpc8"),
    (0, b"MP+", "mpc"),
    (0, b"\x7f\xfe\x80\x01", "dts"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b".RMF", "rm"),
)
_RIFF_FORMS = {b"WAVE": "wav", b"AVI ": "avi"}
# Formats without any header: only the suffix of the file name tells them.
_HEADERLESS = {".g722": "g722", ".g726": "g726"}
_TS_SYNC = b"G"


def container_of(stream: ByteStream, size: int, suffix: str) -> str | None:
    """Return FFmpeg's name of the container; None if the first bytes are those of none.

    Args:
        stream: the file.
        size: bytes of the file.
        suffix: of the file name, in lower case, for formats without a header; may be empty.
    """
    head = read_at(stream, 0, 1024)
    if head.startswith(b"ID3"):
        head = read_at(stream, skip_tags(stream, 0, size), 1024)
    if head[:4] in (b"RIFF", b"RF64", b"BW64", b"RIFX"):
        return _RIFF_FORMS.get(head[8:12])
    for offset, magic, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    if suffix in _HEADERLESS:  # two bytes of sync can be samples
        return _HEADERLESS[suffix]
    if head.startswith(b"\x0b\x77"):
        return "ac3"
    if _is_adts(head):
        return "aac"
    if len(head) > 3 and head[0] == 0x56 and head[1] & 0xE0 == 0xE0:
        return "loas"
    if any(
        head[first : first + 1] == head[first + length : first + length + 1] == _TS_SYNC
        and head[first + 2 * length : first + 2 * length + 1] in (_TS_SYNC, b"")
        for length, first in ((188, 0), (192, 4), (204, 0))
    ):
        return "mpegts"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return "mp3"
    return None


def _is_adts(head: bytes) -> bool:
    """Whether AAC frames in ADTS begin here (ISO 13818-7): 12 bits of sync, layer 0."""
    return len(head) > 6 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 and head[2] >> 2 & 15 <= 12
