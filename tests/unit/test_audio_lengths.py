"""Tests that whole recordings are read completely, whatever length their headers guess, and that cut ones are found."""

from __future__ import annotations

import errno
import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.audio import load_audio, open_audio
from runtime.audio.containers import flac, mpeg, ogg
from runtime.audio.containers.byte_ranges import ByteRanges
from runtime.errors import AudioInvalidError, AudioUnsupportedError
from tests.conftest import REPOSITORY
from tests.helpers.recordings import RATE, encoded, sound, tone, wav_chunks, without_end_of_stream, without_xing

Make = Callable[[], Any]

SPEEX = REPOSITORY / "tests" / "formats" / "speech.spx"


def read(data: bytes, name: str = "audio") -> np.ndarray:
    with open_audio(io.BytesIO(data), RATE, name=name) as reader:
        return np.concatenate(list(reader.blocks()))


def seconds(data: bytes, name: str = "audio") -> float:
    """Return the length of a recording of a tone, which must sound up to its end."""
    samples = read(data, name)
    assert np.abs(samples[-4000:-1500]).max() > 0.3
    return len(samples) / RATE


def mp3(length: float, rate: int = RATE) -> bytes:
    """Return an MP3 of variable bit rate with a Xing header."""
    return sound(tone(length, rate=rate), "MP3", rate=rate)


def low_estimate() -> bytes:
    """Return an MP3 without a Xing header that begins with its highest bit rate: libsndfile guesses a fifth of it."""
    loud = np.random.default_rng(1).uniform(-0.9, 0.9, 8_000).astype(np.float32)
    return without_xing(sound(np.concatenate([loud, tone(5.0) * 0.01, tone(0.5)]), "MP3"))


def in_wav(frames: bytes) -> bytes:
    """Return MP3 frames in a WAV as it is written to a pipe."""
    head = b"WAVEfmt " + struct.pack("<IHHIIHHHHIHHH", 30, 0x55, 1, RATE, 8000, 1, 0, 12, 1, 2, 576, 1, 0)
    return b"RIFF\xff\xff\xff\xff" + head + b"data\xff\xff\xff\xff" + frames


@pytest.mark.parametrize(
    ("make", "length"),
    [
        pytest.param(lambda: without_end_of_stream(sound(tone(3.0), "OGG", "OPUS")), 3.0, id="opus without end"),
        pytest.param(lambda: without_end_of_stream(sound(tone(3.0), "OGG", "VORBIS")), 3.0, id="vorbis without end"),
        pytest.param(lambda: without_xing(mp3(3.0)), 3.0, id="mp3 without xing"),
        pytest.param(lambda: in_wav(without_xing(mp3(3.0))), 3.0, id="mp3 in wav"),
        pytest.param(low_estimate, 6.0, id="mp3 with a low estimate"),
        pytest.param(lambda: encoded(tone(3.0), "adts", "aac"), 3.0, id="aac"),
        pytest.param(lambda: encoded(tone(3.0), "flac", "flac", pipe=True), 3.0, id="flac of unknown length"),
        pytest.param(lambda: b"ID3\4\0\0\0\0\0\1\0" + encoded(tone(3.0), "adts", "aac"), 3.0, id="aac behind id3"),
    ],
)
def test_estimated_lengths_refuse_nothing(make: Make, length: float) -> None:
    data = make()
    assert seconds(data) == pytest.approx(length, abs=0.12)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: (mp3(1.0), mp3(2.0)), id="mp3"),
        pytest.param(lambda: (mp3(1.0), without_xing(mp3(2.0))), id="mp3 without second xing"),
        pytest.param(lambda: (mp3(1.0), b"ID3\4\0\0\0\0\0\1\0" + mp3(2.0, 32_000)), id="mp3 of another rate"),
        pytest.param(lambda: (mp3(1.0) + b"TAG" + bytes(125), mp3(2.0)), id="mp3 with tags"),
        pytest.param(lambda: (sound(tone(1.0), "OGG", "OPUS"), sound(tone(2.0), "OGG", "OPUS")), id="opus"),
        pytest.param(
            lambda: (sound(tone(1.0), "OGG", "VORBIS"), sound(tone(2.0, rate=8_000), "OGG", rate=8_000)), id="vorbis"
        ),
        pytest.param(
            lambda: (without_end_of_stream(sound(tone(1.0), "OGG", "OPUS")), sound(tone(2.0), "OGG")), id="mixed"
        ),
        pytest.param(lambda: (sound(tone(1.0), "FLAC"), encoded(tone(2.0), "flac", "flac", pipe=True)), id="flac"),
        pytest.param(lambda: (sound(tone(1.0), "WAV"), sound(np.stack([tone(2.0)] * 2, 1), "WAV")), id="wav"),
        pytest.param(lambda: (encoded(tone(1.0), "adts", "aac"), encoded(tone(2.0), "adts", "aac")), id="aac"),
        pytest.param(lambda: (encoded(tone(1.0), "ogg", "flac"), encoded(tone(2.0), "ogg", "flac")), id="ogg flac"),
    ],
)
def test_joined_recordings_are_all_read(make: Make) -> None:
    assert seconds(b"".join(make())) == pytest.approx(3.0, abs=0.25)


def test_all_data_chunks_are_read() -> None:
    np.testing.assert_allclose(read(wav_chunks(tone(3.0), 4)), tone(3.0), atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: mp3(3.0), id="mp3"),
        pytest.param(lambda: without_xing(mp3(3.0)), id="mp3 without xing"),
        pytest.param(lambda: mp3(1.0) + mp3(2.0), id="joined mp3"),
        pytest.param(lambda: encoded(tone(3.0), "adts", "aac"), id="aac"),
        pytest.param(lambda: encoded(tone(3.0), "flac", "flac", pipe=True), id="flac of unknown length"),
        pytest.param(lambda: without_end_of_stream(sound(tone(3.0), "OGG", "OPUS")), id="opus without end"),
        pytest.param(lambda: encoded(tone(3.0), "ogg", "flac"), id="ogg flac"),
        pytest.param(lambda: encoded(tone(3.0), "mp4", "aac"), id="mp4"),
        pytest.param(lambda: encoded(tone(3.0), "mp4", "aac", options={"movflags": "faststart"}), id="mp4 of the web"),
        pytest.param(
            lambda: encoded(tone(3.0), "mp4", "aac", options={"movflags": "frag_keyframe+empty_moov"}), id="fragments"
        ),
        pytest.param(lambda: encoded(tone(3.0, rate=48_000), "webm", "libopus", rate=48_000), id="webm"),
        pytest.param(
            lambda: encoded(tone(3.0, rate=48_000), "webm", "libopus", rate=48_000, pipe=True), id="live webm"
        ),
        pytest.param(lambda: encoded(tone(3.0), "mpegts", "aac"), id="mpeg-ts"),
        pytest.param(lambda: encoded(tone(3.0, rate=44_100), "flv", "aac", rate=44_100), id="flv"),
        pytest.param(lambda: encoded(tone(3.0), "avi", "libmp3lame"), id="avi"),
        pytest.param(lambda: encoded(tone(3.0), "asf", "wmav2"), id="wma"),
        pytest.param(lambda: encoded(tone(3.0, rate=48_000), "ac3", "ac3", rate=48_000), id="ac3"),
        pytest.param(lambda: encoded(tone(3.0, rate=48_000), "eac3", "eac3", rate=48_000), id="eac3"),
        pytest.param(lambda: encoded(tone(3.0, rate=8_000), "amr", "libopencore_amrnb", rate=8_000), id="amr"),
        pytest.param(lambda: encoded(tone(3.0), "caf", "alac"), id="caf"),
        pytest.param(lambda: encoded(tone(3.0), "wav", "g722"), id="g722 in wav"),
        pytest.param(lambda: SPEEX.read_bytes(), id="speex"),
    ],
)
def test_cut_recordings_are_found(make: Make) -> None:
    data = make()
    whole = len(read(data))
    assert whole > RATE
    for share in (0.4, 0.8, 0.99):
        end = int(len(data) * share)
        # A cut between two frames cannot be seen, so two ends are tried.
        assert any(is_cut(data[: end - before]) for before in (0, 3))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        pytest.param(lambda: SPEEX.read_bytes(), "a.spx", id="speex"),
        pytest.param(lambda: encoded(tone(2.0), "g722", "g722"), "a.g722", id="g722"),
        pytest.param(lambda: encoded(tone(2.0), "wav", "g722"), "a.wav", id="g722 in wav"),
        pytest.param(lambda: encoded(tone(2.0, rate=8_000), "wav", "g726", rate=8_000), "a.wav", id="g726 in wav"),
        pytest.param(lambda: encoded(tone(2.0, rate=8_000), "g726", "g726", rate=8_000), "a.g726", id="g726"),
        pytest.param(lambda: encoded(tone(2.0, rate=48_000), "ac3", "ac3", rate=48_000), "a.ac3", id="ac3"),
        pytest.param(lambda: encoded(tone(2.0), "ogg", "flac"), "a.ogg", id="ogg flac"),
        pytest.param(lambda: encoded(tone(2.0), "mpegts", "aac"), "a.ts", id="mpeg-ts"),
        pytest.param(lambda: encoded(tone(2.0, rate=44_100), "flv", "aac", rate=44_100), "a.flv", id="flv"),
        pytest.param(lambda: encoded(tone(2.0), "avi", "libmp3lame"), "a.avi", id="avi"),
        pytest.param(lambda: encoded(tone(2.0, rate=8_000), "amr", "libopencore_amrnb", rate=8_000), "a.amr", id="amr"),
        pytest.param(lambda: encoded(tone(2.0), "adts", "aac"), "a.mp3", id="aac with a wrong name"),
        pytest.param(lambda: encoded(tone(2.0), "tta", "tta"), "a.tta", id="tta"),
        pytest.param(lambda: encoded(tone(2.0), "wv", "wavpack"), "a.wv", id="wavpack"),
    ],
)
def test_pyav_reads_what_libsndfile_refuses(make: Make, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make()
    samples = read(data, name)
    assert len(samples) / RATE == pytest.approx(1.5 if name == "a.spx" else 2.0, abs=0.15)
    assert np.abs(samples[RATE // 2 : RATE]).max() > 0.1
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioUnsupportedError, match=r"asr-deploy\[av\]"):
        read(data, name)


def is_cut(data: bytes) -> bool:
    try:
        read(data)
    except AudioInvalidError as error:
        return "truncated" in str(error)
    return False


def test_playlists_open_no_other_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mkv"
    secret.write_bytes(encoded(tone(1.0), "matroska", "flac"))
    for text in (f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n", f"ffconcat version 1.0\nfile '{secret}'\n"):
        with pytest.raises(AudioInvalidError, match="is not audio"):
            read(text.encode())


def test_trailing_bytes_are_no_part_of_a_recording() -> None:
    for data in (mp3(1.0), sound(tone(1.0), "OGG", "OPUS"), sound(tone(1.0), "WAV")):
        samples = read(data)
        np.testing.assert_array_equal(read(data + bytes(5000)), samples)


def test_wav_with_a_wrong_riff_size_is_read() -> None:
    data = bytearray(sound(tone(1.0), "WAV"))
    data[4:8] = struct.pack("<I", len(data) + 100_000)
    np.testing.assert_allclose(read(bytes(data)), tone(1.0), atol=1e-4)


def test_checksums_have_published_values() -> None:
    """The check values of CRC-8, CRC-16/UMTS and Ogg's CRC-32 (CRC-32/MPEG-2 from zero) for the digits 1 to 9."""
    digits = b"123456789"
    assert (flac.checksum8(digits), flac.checksum16(digits), ogg.checksum(digits)) == (0xF4, 0xFEE8, 0x89A1897F)


def test_frame_headers_have_published_lengths() -> None:
    lengths = {
        0xFFFB9064: (417, 1152, 44_100),  # MPEG-1 layer III, 128 kbit/s
        0xFFF388C4: (288, 576, 16_000),  # MPEG-2 layer III, 64 kbit/s
    }
    for bits, expected in lengths.items():
        frame = mpeg.parse_header(bits)
        assert frame
        assert (frame.length, frame.samples, frame.rate) == expected
    assert mpeg.parse_header(0xFFFBF064) is None  # bit rate 15
    assert mpeg.parse_header(0x00000000) is None


def test_ranges_read_as_one_stream() -> None:
    base = io.BytesIO(bytes(range(100)))
    joined = ByteRanges(base, [(10, 20), b"abc", (50, 52)])
    assert joined.read() == bytes(range(10, 20)) + b"abc" + bytes([50, 51])
    assert joined.seek(-4, io.SEEK_END) == 11
    assert joined.read(3) == b"bc" + bytes([50])
    assert joined.read(100) == bytes([51])
    assert joined.read(1) == b""


def test_mp3_of_a_file_is_read_like_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "joined.mp3"
    path.write_bytes(mp3(1.0) + mp3(1.0))
    assert len(load_audio(path, RATE)) == len(read(path.read_bytes()))


class Failing(io.BytesIO):
    """A file on a disk that fails at an offset, once ``fails`` is set."""

    fails = False

    def readinto(self, buffer: Any) -> int:
        if self.fails and self.tell() > 100_000:
            raise OSError(errno.EIO, "Input/output error")
        return super().readinto(buffer)

    def read(self, count: int | None = -1) -> bytes:
        if self.fails and self.tell() > 100_000:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(count)


def test_error_of_the_disk_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    data = sound(np.random.default_rng(1).uniform(-0.5, 0.5, 12 * RATE).astype(np.float32), "WAV")
    disk = Failing(data)
    with open_audio(disk, RATE, name="talk") as reader:
        disk.fails = True
        with pytest.raises(AudioInvalidError, match=r"talk: cannot be read \(Input/output error\)"):
            list(reader.blocks())
    assert capfd.readouterr().err == ""
