"""Tests of reading audio: containers, rates, channels, streams and arrays, and errors for invalid audio."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import tracemalloc
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import soxr

from runtime.audio import BLOCK_SECONDS, from_array, load_audio, open_array, open_audio
from runtime.errors import (
    AsrError,
    AudioInvalidError,
    AudioNotFoundError,
    AudioUnsupportedError,
    OptionError,
)

RATE = 16_000


def tone(rate: int, seconds: float = 1.0, frequency: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def dominant(samples: np.ndarray) -> float:
    """Return the frequency in Hz with the largest magnitude."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * RATE / len(samples))


def write_container(path: Path, codec: str, seconds: float) -> None:
    """Write 440 Hz on the left channel and 880 Hz on the right one."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=48_000)
        stream.layout = "stereo"
        stereo = np.stack([tone(48_000, seconds), tone(48_000, seconds, 880.0)])
        frame = av.AudioFrame.from_ndarray(stereo, format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(format=stream.format.name, layout="stereo", rate=48_000)
        for resampled in resampler.resample(frame):
            container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("suffix", "rate", "subtype"),
    [
        ("wav", 16_000, "PCM_16"),
        ("wav", 8_000, "ULAW"),
        ("wav", 44_100, "FLOAT"),
        ("flac", 48_000, "PCM_24"),
        ("ogg", 22_050, "VORBIS"),
        ("ogg", 48_000, "OPUS"),
        ("mp3", 44_100, "MPEG_LAYER_III"),
        ("aiff", 11_025, "PCM_16"),
    ],
)
def test_formats_and_rates_give_the_same_tone(tmp_path: Path, suffix: str, rate: int, subtype: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(rate, 2.0), rate, subtype=subtype, format="OGG" if suffix == "ogg" else None)
    samples = load_audio(path, RATE)
    assert samples.dtype == np.float32
    assert abs(len(samples) / RATE - 2.0) < 0.06  # lossy codecs pad
    assert abs(dominant(samples) - 440) < 2
    assert 0.4 < np.abs(samples[RATE // 2 : RATE]).max() < 0.6


@pytest.mark.parametrize("suffix", ["m4a", "mp4", "webm"])
def test_containers_that_libsndfile_cannot_read_need_pyav(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"tone.{suffix}"
    write_container(path, "libopus" if suffix == "webm" else "aac", 2.0)
    assert abs(dominant(load_audio(path, RATE, channel=0)) - 440) < 2
    assert abs(dominant(load_audio(path, RATE, channel=1)) - 880) < 2
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioUnsupportedError, match=r"asr-deploy\[av\]"):
        load_audio(path, RATE)


def test_channels_are_mixed_or_selected(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    left, right = tone(RATE), tone(RATE, frequency=1000.0)
    soundfile.write(path, np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(path, RATE), (left + right) / 2, atol=1e-6)
    np.testing.assert_allclose(load_audio(path, RATE, channel=1), right, atol=1e-6)
    with pytest.raises(OptionError, match="no channel 2; it has 2"):
        load_audio(path, RATE, channel=2)


def test_resampling_in_blocks_equals_resampling_at_once(tmp_path: Path) -> None:
    """The file has several blocks."""
    path = tmp_path / "long.wav"
    soundfile.write(path, tone(44_100, 31.0), 44_100, subtype="FLOAT")
    samples = load_audio(path, RATE)
    assert abs(len(samples) - 31 * RATE) <= 1
    np.testing.assert_allclose(samples[RATE:-RATE], tone(RATE, 31.0)[RATE:-RATE], atol=2e-3)


def test_streams_and_arrays(tmp_path: Path) -> None:
    path = tmp_path / "tone.flac"
    soundfile.write(path, tone(RATE), RATE)

    read, write = os.pipe()  # not seekable, like standard input from a pipe
    os.write(write, path.read_bytes())
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        np.testing.assert_array_equal(load_audio(pipe, RATE), load_audio(path, RATE))
    ints = (tone(RATE) * 32768).astype(np.int16)
    np.testing.assert_allclose(from_array(ints, RATE, RATE), tone(RATE), atol=1e-4)
    unsigned = (tone(RATE) * 127 + 128).astype(np.uint8)
    np.testing.assert_allclose(from_array(unsigned, RATE, RATE), tone(RATE), atol=0.02)
    assert len(from_array(tone(8_000).astype(np.float64), 8_000, RATE)) == RATE


@pytest.mark.parametrize(
    ("array", "rate", "message"),
    [
        (np.zeros((2, 3, 4)), RATE, "shape"),
        (np.array(["a"]), RATE, "shape"),
        (np.zeros(0, np.float32), RATE, "no samples"),
        (np.array([0.0, np.nan]), RATE, "sample 1 "),
        (np.array([np.inf]), RATE, "not a finite number"),
        (np.zeros(10), 0, "not positive"),
    ],
)
def test_invalid_arrays_are_refused(array: np.ndarray, rate: int, message: str) -> None:
    with pytest.raises(AudioInvalidError, match=message):
        from_array(array, rate, RATE)


def test_invalid_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioNotFoundError, match="no such file"):
        load_audio(tmp_path / "absent.wav", RATE)
    with pytest.raises(AudioInvalidError, match="is a folder"):
        load_audio(tmp_path, RATE)
    invalid: dict[str, tuple[bytes, str]] = {
        "empty.wav": (b"", "is empty"),
        "text.wav": (b"this is no audio at all, only some text\n" * 40, "not audio"),
        "png.wav": (b"\x89PNG\r\n\x1a\n" + bytes(200), "not audio"),
        "header.wav": (b"RIFF\x24\x00\x00\x00WAVE", "truncated"),
    }
    for name, (content, message) in invalid.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioInvalidError, match=message) as caught:
            load_audio(tmp_path / name, RATE)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, RATE * 6).astype(np.float32)
    for suffix, subtype in (
        ("wav", "PCM_16"),
        ("flac", "PCM_16"),
        ("aiff", "PCM_16"),
        ("au", "PCM_16"),
        ("w64", "PCM_16"),
        ("rf64", "PCM_16"),
        ("caf", "PCM_16"),
        ("ogg", "VORBIS"),
        ("ogg", "OPUS"),
    ):
        path = tmp_path / f"cut.{suffix}"
        soundfile.write(path, noise, RATE, subtype=subtype)
        assert abs(len(load_audio(path, RATE)) - len(noise)) < 2000
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(AudioInvalidError, match="truncated"):
            load_audio(path, RATE)


def test_truncated_webm_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.webm"
    write_container(path, "libopus", 6.0)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioInvalidError, match="truncated"):
        load_audio(path, RATE)


def test_format_does_not_depend_on_the_name(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tone(RATE), RATE)
    for name in ("talk.raw", "talk", "talk.mp3"):
        (tmp_path / name).write_bytes((tmp_path / "x.wav").read_bytes())
        assert len(load_audio(tmp_path / name, RATE)) == RATE


def test_named_pipe_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tone(RATE), RATE)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes((tmp_path / "x.wav").read_bytes()))
    writer.start()
    assert len(load_audio(tmp_path / "pipe", RATE)) == RATE
    writer.join()


def test_system_errors_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AudioInvalidError, match="cannot be read"):
        load_audio(tmp_path / ("x" * 300), RATE)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(AudioInvalidError, match="cannot be read"):
        load_audio(tmp_path / "loop", RATE)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFF024, 0x80000000, 0])
def test_wav_of_unknown_length_is_not_truncated(tmp_path: Path, length: int) -> None:
    """Programs that write to a pipe leave various values as the length."""
    path = tmp_path / "piped.wav"
    soundfile.write(path, tone(RATE), RATE, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", length)
    index = data.index(b"data") + 4
    data[index : index + 4] = struct.pack("<I", length or 0xFFFFFFFF)
    path.write_bytes(data)
    assert len(load_audio(path, RATE)) == RATE


def test_no_samples_and_not_finite_samples_are_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "none.wav"), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(RATE)
    with pytest.raises(AudioInvalidError, match="holds no samples"):
        load_audio(tmp_path / "none.wav", RATE)
    samples = tone(RATE)
    samples[1234] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(AudioInvalidError, match="sample 1234 "):
        load_audio(tmp_path / "nan.wav", RATE)


def test_damaged_file_decodes_or_raises_one_sentence(tmp_path: Path) -> None:
    """The decoder raises only errors of this project, for any bytes."""
    path = tmp_path / "x.flac"
    soundfile.write(path, tone(RATE, 0.3), RATE)
    data = path.read_bytes()
    rng = np.random.default_rng(7)
    messages = []
    for _ in range(60):
        damaged = bytearray(data[: rng.integers(1, len(data))])
        for index in rng.integers(0, len(damaged), 3):
            damaged[index] = int(rng.integers(0, 256))
        path.write_bytes(damaged)
        try:
            assert np.isfinite(load_audio(path, RATE)).all()
        except AsrError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "m4a"])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_blocks_join_to_the_whole(tmp_path: Path, suffix: str, rate: int) -> None:
    """Equal to decoding at once: exactly at the file's own rate, else up to rounding errors of the resampler."""
    path = tmp_path / f"long.{suffix}"
    if suffix == "m4a":
        write_container(path, "aac", 25.0)
        rate = 48_000
    else:
        stereo = np.random.default_rng(3).uniform(-0.5, 0.5, (25 * rate, 2)).astype(np.float32)
        soundfile.write(path, stereo, rate)
    with open_audio(path, RATE) as reader:
        assert reader.duration == pytest.approx(25.0, abs=0.1)
        blocks = list(reader.blocks())
        assert not list(reader.blocks())  # the same iterator
    assert len(blocks) >= 3
    assert all(0 < len(block) <= 1.1 * BLOCK_SECONDS * RATE and block.dtype == np.float32 for block in blocks)
    whole = np.concatenate(blocks)
    assert abs(len(whole) / RATE - 25.0) < 0.1
    np.testing.assert_array_equal(load_audio(path, RATE), whole)
    if suffix != "m4a":
        mono = soundfile.read(path, dtype="float32")[0].mean(axis=1, dtype=np.float32)
        if rate == RATE:
            np.testing.assert_array_equal(whole, mono)
        else:
            np.testing.assert_allclose(whole, soxr.resample(mono, rate, RATE, quality="HQ"), atol=1e-5)


def test_blocks_of_an_array() -> None:
    """Long arrays are converted block by block too."""
    array = np.broadcast_to(np.int16(16384), (3600 * RATE, 2))  # an hour, in two bytes
    with open_array(array, RATE, RATE) as reader:
        assert reader.duration == 3600
        first = next(reader.blocks())
        assert len(first) == BLOCK_SECONDS * RATE
        assert np.all(first == 0.5)


def test_file_is_decoded_block_by_block(tmp_path: Path) -> None:
    """An error at the end of the file is raised there."""
    path = tmp_path / "cut.flac"
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, RATE * 40).astype(np.float32)
    soundfile.write(path, noise, RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with open_audio(path, RATE) as reader:
        blocks = reader.blocks()
        assert len(next(blocks)) == BLOCK_SECONDS * RATE
        with pytest.raises(AudioInvalidError, match="truncated"):
            list(blocks)


@pytest.mark.parametrize("suffix", ["wav", "m4a"])
def test_reader_that_is_closed_early_closes_its_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"long.{suffix}"
    if suffix == "m4a":
        write_container(path, "aac", 15.0)
    else:
        soundfile.write(path, tone(RATE, 15.0), RATE)
    opened = []
    original = Path.open

    def watched(self: Path, *args: Any, **options: Any) -> Any:
        opened.append(original(self, *args, **options))
        return opened[-1]

    monkeypatch.setattr(Path, "open", watched)
    with open_audio(path, RATE) as reader:
        next(reader.blocks())
        assert not opened[0].closed
    assert opened[0].closed
    assert not list(reader.blocks())
    with pytest.raises(OptionError, match="no channel 5"):
        open_audio(path, RATE, channel=5)
    assert opened[1].closed


def test_long_stream_is_copied_to_a_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(RATE * 600, np.float32), RATE, subtype="FLOAT")  # 38 MB

    class Pipe(io.RawIOBase):
        """A stream that cannot seek."""

        def __init__(self) -> None:
            self.file = (tmp_path / "long.wav").open("rb")

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return self.file.readinto(buffer)

    pipe = Pipe()
    tracemalloc.start()
    with open_audio(pipe, RATE) as reader:  # type: ignore[arg-type]
        seconds = sum(map(len, reader.blocks())) / RATE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    pipe.file.close()
    assert seconds == 600
    assert peak < 24_000_000  # the part that is copied to memory, and a block; the file has 38 MB


def test_text_stream_is_refused() -> None:
    with pytest.raises(AudioInvalidError, match="binary mode"):
        open_audio(io.StringIO("RIFF"), RATE)  # type: ignore[arg-type]


def test_less_than_one_sample_is_refused() -> None:
    with pytest.raises(AudioInvalidError, match="shorter than one sample"):
        from_array(np.ones(1, np.float32), 1_000_000, RATE)


def test_container_without_a_length(tmp_path: Path) -> None:
    """The header of a live stream does not declare its length."""

    class Live(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += bytes(data)
            return len(data)

    live = Live()
    with av.open(live, "w", format="webm") as container:
        stream: Any = container.add_stream("libopus", rate=48_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(tone(48_000, 3.0)[None], format="fltp", layout="mono")
        frame.sample_rate = 48_000
        for resampled in av.AudioResampler(format=stream.format.name, layout="mono", rate=48_000).resample(frame):
            container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))
    with open_audio(io.BytesIO(bytes(live.data)), RATE) as reader:
        assert reader.duration is None
        assert abs(sum(map(len, reader.blocks())) / RATE - 3.0) < 0.1


def test_stream_is_read_from_its_position_and_stays_open(tmp_path: Path) -> None:
    memory = io.BytesIO()
    soundfile.write(memory, tone(RATE), RATE, format="WAV")
    expected = load_audio(io.BytesIO(memory.getvalue()), RATE)
    behind_header = io.BytesIO(b"header" + memory.getvalue())
    behind_header.seek(6)
    (tmp_path / "a.wav").write_bytes(memory.getvalue())
    with (tmp_path / "a.wav").open("rb") as opened:
        memory.seek(0)
        for stream in (memory, behind_header, opened):
            assert np.array_equal(load_audio(stream, RATE), expected)
            assert not stream.closed
    with pytest.raises(AudioInvalidError, match=r"^the upload: is empty"):
        open_audio(io.BytesIO(), RATE, name="the upload")
