"""Tests of live audio: queues between threads, files played in real time, pipes."""

from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from runtime.audio import AudioReader, load_audio, open_audio
from runtime.audio.live import LIVE_RATE, FileSource, Inbox, LiveSource
from runtime.audio.pipe import is_container, open_pipe
from runtime.errors import AsrError, AudioInvalidError, AudioUnsupportedError, OptionError
from tests.conftest import DATA
from tests.unit.test_audio import tone, write_container

RATE = LIVE_RATE


def read_all(source: LiveSource) -> npt.NDArray[Any]:
    return np.concatenate(list(source.blocks()))


class TestInbox:
    def test_waiting_items_are_taken_together_in_order(self) -> None:
        inbox: Inbox[str] = Inbox(10)
        batches = inbox.batches()
        assert inbox.put("a", 1)
        assert inbox.put("b", 1)
        assert next(batches) == ["a", "b"]
        assert inbox.put("c", 1)
        inbox.end()
        assert inbox.put("d", 1)
        assert list(batches) == [["c"]]

    def test_error_is_raised_after_earlier_items(self) -> None:
        inbox: Inbox[str] = Inbox(10)
        inbox.put("a", 1)
        inbox.end(AudioInvalidError("gone"))
        batches = inbox.batches()
        assert next(batches) == ["a"]
        with pytest.raises(AudioInvalidError, match="gone"):
            next(batches)

    def test_offer_beyond_the_bound_is_dropped(self) -> None:
        inbox: Inbox[str] = Inbox(3)
        assert inbox.offer("a", 2)
        assert inbox.offer("b", 2)
        assert not inbox.offer("c", 2)
        assert next(inbox.batches()) == ["a", "b"]
        assert inbox.offer("d", 2)

    def test_put_beyond_the_bound_waits(self) -> None:
        inbox: Inbox[int] = Inbox(2)

        def produce() -> None:
            for number in range(100):
                inbox.put(number, 1)
            inbox.end()

        thread = threading.Thread(target=produce, daemon=True)
        thread.start()
        batches = list(inbox.batches())
        assert [number for batch in batches for number in batch] == list(range(100))
        assert max(map(len, batches)) <= 3

    def test_abandon_wakes_a_waiting_producer(self) -> None:
        inbox: Inbox[str] = Inbox(1)
        inbox.put("a", 1)
        answers: list[bool] = []
        thread = threading.Thread(target=lambda: answers.append(inbox.put("b", 1)), daemon=True)
        thread.start()
        inbox.abandon()
        thread.join(10)
        assert answers == [False]
        assert not inbox.offer("c", 1)


class Clock:
    """Clock that advances when a source waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """1.05 s at 16 kHz."""
    path = tmp_path / "spoken.wav"
    soundfile.write(path, tone(RATE, 1.05), RATE, subtype="FLOAT")
    return path


class TestFile:
    def test_pieces_join_to_the_file(self, spoken: Path) -> None:
        source = FileSource(open_audio(spoken, RATE), "spoken.wav", piece=0.1)
        blocks = list(source.blocks())
        assert [len(block) for block in blocks] == [1600] * 10 + [800]
        np.testing.assert_array_equal(np.concatenate(blocks), load_audio(spoken, RATE))

    def test_pieces_cross_the_blocks_of_a_long_file(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "long.wav", tone(RATE, 21.0), RATE, subtype="FLOAT")
        source = FileSource(open_audio(tmp_path / "long.wav", RATE), "long.wav", piece=0.7)
        np.testing.assert_array_equal(read_all(source), tone(RATE, 21.0))

    def test_real_time_pieces_are_on_time_without_drift(self, spoken: Path) -> None:
        clock = Clock()
        source = FileSource(
            open_audio(spoken, RATE), "spoken.wav", piece=0.1, realtime=True, clock=clock, wait=clock.wait
        )
        times = []
        for _ in source.blocks():
            times.append(clock.now - 1000)
            clock.now += 0.03  # time of processing, which shortens the next wait
        np.testing.assert_allclose(times, [*np.arange(1, 11) * 0.1, 1.05], atol=1e-6)
        np.testing.assert_allclose(clock.waits, [0.1] + [0.07] * 9 + [0.02], atol=1e-6)

    def test_late_pieces_are_joined(self, spoken: Path) -> None:
        clock = Clock()
        source = FileSource(
            open_audio(spoken, RATE), "spoken.wav", piece=0.1, realtime=True, clock=clock, wait=clock.wait
        )
        lengths = []
        for block in source.blocks():
            lengths.append(len(block) // 1600)
            clock.now += 0.45 if len(lengths) == 1 else 0.0
        assert lengths == [1, 4, 1, 1, 1, 1, 1, 0]  # at 0.1 s, at 0.55 s, and on time from 0.6 s on

    def test_stop_ends_at_the_next_piece_and_ends_waiting(self, spoken: Path) -> None:
        source = FileSource(open_audio(spoken, RATE), "spoken.wav", piece=0.1)
        blocks = source.blocks()
        next(blocks)
        source.stop()
        assert list(blocks) == []

        def clock() -> float:
            waiting.stop()  # like a signal between reading the clock and waiting
            return 0.0

        waiting = FileSource(open_audio(spoken, RATE), "spoken.wav", piece=10.0, realtime=True, clock=clock)
        assert list(waiting.blocks()) == []

    @pytest.mark.parametrize("realtime", [False, True])
    def test_audio_before_damage_is_read(self, realtime: bool) -> None:
        def damaged() -> Generator[npt.NDArray[np.float32], None, None]:
            yield tone(RATE, 0.3)
            raise AudioInvalidError("damaged")

        clock = Clock()
        reader = AudioReader(damaged(), None, ExitStack())
        source = FileSource(reader, "file", piece=0.2, realtime=realtime, clock=clock, wait=clock.wait)
        blocks = source.blocks()
        assert [len(next(blocks)), len(next(blocks))] == [3200, 1600]
        with pytest.raises(AudioInvalidError, match="damaged"):
            next(blocks)

    def test_real_clock(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "short.wav", tone(RATE, 0.05), RATE, subtype="FLOAT")
        source = FileSource(open_audio(tmp_path / "short.wav", RATE), "short.wav", piece=0.01, realtime=True)
        np.testing.assert_array_equal(read_all(source), tone(RATE, 0.05))
        source.close()

    @pytest.mark.parametrize("piece", [0.0, -1.0, 11.0, float("nan")])
    def test_invalid_length_of_pieces_is_refused(self, spoken: Path, piece: float) -> None:
        with pytest.raises(OptionError, match=r"0\.01 to 10 s, not"):
            FileSource(open_audio(spoken, RATE), "spoken.wav", piece=piece)


class Pipe:
    """Both ends of a pipe."""

    def __init__(self) -> None:
        read, self._write = os.pipe()
        self.reading = cast(BinaryIO, os.fdopen(read, "rb"))
        self._open = True

    def write(self, data: bytes) -> None:
        assert os.write(self._write, data) == len(data)

    def end(self) -> None:
        if self._open:
            os.close(self._write)
            self._open = False


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    both = Pipe()
    yield both
    both.end()
    both.reading.close()


def fail(text: str) -> None:
    raise AssertionError(f"unexpected warning {text!r}")


def opened(data: bytes, warn: Callable[[str], object] = fail, **options: Any) -> LiveSource:
    return open_pipe(io.BytesIO(data), warn=warn, **options)


RAW = (tone(RATE, 0.5) * 32767).astype("<i2")


class TestRawPipe:
    def test_samples_arrive_while_more_are_written(self, pipe: Pipe) -> None:
        pipe.write(RAW[:100].tobytes())
        source = open_pipe(pipe.reading, warn=fail)
        assert source.rate == RATE
        blocks = source.blocks()
        np.testing.assert_array_equal(next(blocks), RAW[:100])
        pipe.write(RAW[100:110].tobytes() + b"\x01")  # half a sample
        np.testing.assert_array_equal(next(blocks), RAW[100:110])
        pipe.write(b"\x02")
        block = next(blocks)
        assert block.dtype == np.int16
        assert block.tolist() == [0x0201]
        pipe.end()
        assert list(blocks) == []
        source.close()

    @given(st.lists(st.integers(1, 700), min_size=1), st.binary(max_size=900))
    def test_samples_do_not_depend_on_how_bytes_are_split(self, sizes: list[int], data: bytes) -> None:
        data = RAW[:100].tobytes() + data[: len(data) // 2 * 2]
        pieces: list[bytes] = []
        index = 0
        while index < len(data):
            size = sizes[len(pieces) % len(sizes)]
            pieces.append(data[index : index + size])
            index += size
        source = open_pipe(Trickle(pieces), raw=True, warn=fail)
        np.testing.assert_array_equal(read_all(source), np.frombuffer(data, "<i2"))

    def test_rate_of_raw_samples_is_checked(self) -> None:
        assert opened(RAW.tobytes(), raw_rate=44_100).rate == 44_100
        for rate in (0, -16_000, 10**9):
            with pytest.raises(OptionError, match=f"8000 to 192000 Hz, not {rate}"):
                opened(RAW.tobytes(), raw_rate=rate)

    def test_incomplete_sample_at_the_end_causes_a_warning(self) -> None:
        warnings: list[str] = []
        source = opened(RAW.tobytes() + b"\x01", warnings.append)
        np.testing.assert_array_equal(read_all(source), RAW)
        (warning,) = warnings
        assert warning.startswith("standard input: ends in the middle of a sample")

    def test_empty_stream_is_an_error(self) -> None:
        with pytest.raises(AudioInvalidError, match=r"^standard input: is empty \(0 bytes\)$"):
            opened(b"")
        with pytest.raises(AudioInvalidError, match=r"^standard input: holds no samples$"):
            read_all(opened(b"", raw=True))

    def test_few_samples_are_raw_samples(self) -> None:
        np.testing.assert_array_equal(read_all(opened(RAW[:3].tobytes())), RAW[:3])

    def test_stop_ends_an_open_pipe(self, pipe: Pipe) -> None:
        pipe.write(RAW.tobytes())
        source = open_pipe(pipe.reading, warn=fail)
        blocks = source.blocks()
        next(blocks)
        source.stop()  # the other end is still open
        assert list(blocks) == []

    def test_long_audio_arrives_completely(self) -> None:
        """20 s, more than may wait: the writer waits for the reader."""
        source = open_pipe(Trickle([RAW.tobytes()] * 40), warn=fail)
        blocks = list(source.blocks())
        np.testing.assert_array_equal(np.concatenate(blocks), np.tile(RAW, 40))
        assert max(map(len, blocks)) <= 11 * RATE

    def test_system_errors_are_one_sentence(self) -> None:
        for options in ({}, {"raw": True}):
            read, write = os.pipe()
            stream = cast(BinaryIO, os.fdopen(write, "wb"))  # the wrong end
            with pytest.raises(AudioInvalidError, match=r"^standard input: cannot be read"):
                read_all(open_pipe(stream, warn=fail, **cast(Any, options)))
            stream.close()
            os.close(read)


class Trickle(io.BytesIO):
    """Stream without a file descriptor that returns the given pieces one by one."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__()
        self._pieces = list(pieces)

    def read1(self, size: int | None = -1) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


class TestContainers:
    @pytest.mark.parametrize(
        ("suffix", "subtype", "endian"),
        [
            ("wav", "PCM_16", None),
            ("wav", "PCM_16", "BIG"),
            ("wav", "ULAW", None),
            ("flac", "PCM_16", None),
            ("ogg", "VORBIS", None),
            ("ogg", "OPUS", None),
            ("mp3", "MPEG_LAYER_III", None),
            ("aiff", "PCM_16", None),
            ("au", "PCM_16", None),
            ("caf", "PCM_16", None),
            ("w64", "PCM_16", None),
            ("rf64", "PCM_16", None),
        ],
    )
    def test_containers_of_libsndfile_are_recognized(
        self, tmp_path: Path, suffix: str, subtype: str, endian: str | None
    ) -> None:
        path = tmp_path / f"tone.{suffix}"
        soundfile.write(path, tone(48_000), 48_000, subtype=subtype, endian=endian)
        assert is_container(path.read_bytes()[:16])
        source = opened(path.read_bytes())
        if source.rate == RATE:  # a WAV of 16-bit PCM is not resampled
            np.testing.assert_array_equal(read_all(source), load_audio(path, RATE))
        else:
            assert (suffix, endian) == ("wav", None)

    @pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("webm", "libopus"), ("aac", "aac")])
    def test_containers_of_pyav_are_recognized(self, tmp_path: Path, suffix: str, codec: str) -> None:
        path = tmp_path / f"tone.{suffix}"
        write_container(path, codec, 1.0)
        np.testing.assert_array_equal(read_all(opened(path.read_bytes())), load_audio(path, RATE))

    def test_broken_container_is_refused(self) -> None:
        with pytest.raises(AsrError, match=r"^standard input: is "):
            opened(b"fLaC" + bytes(100))
        with pytest.raises((AudioInvalidError, AudioUnsupportedError)):
            opened(b"\x1aE\xdf\xa3" + bytes(100))

    @pytest.mark.parametrize(
        "samples",
        [
            [0, 0, 0, 0],
            [-1, -1, -1, -1],  # its bytes are the sync of MPEG audio, layer I
            [-1, 0, 1, 0],
            [1, -1, -2, 3],
            [-257, -1, -1, -1],
            [-1025, -1, -1, -1],  # a sync of layer III without a valid header
        ],
    )
    def test_quiet_samples_are_not_a_container(self, samples: list[int]) -> None:
        assert not is_container(np.array(samples * 2, "<i2").tobytes())

    @given(st.lists(st.integers(-512, 511), min_size=8, max_size=8))
    def test_samples_below_a_hundredth_of_full_scale_are_not_a_container(self, samples: list[int]) -> None:
        assert not is_container(np.array(samples, "<i2").tobytes())

    def test_raw_option_ignores_containers(self) -> None:
        data = (DATA / "en-1.wav").read_bytes()
        np.testing.assert_array_equal(read_all(opened(data, raw=True)), np.frombuffer(data, "<i2"))


def wav(samples: bytes, *, channels: int = 1, bits: int = 16, length: int | None = None, before: bytes = b"") -> bytes:
    """Return a WAV of PCM at 16 kHz whose header declares ``length`` bytes."""
    size = len(samples) if length is None else length
    frame = channels * bits // 8
    header = struct.pack("<HHIIHH", 1, channels, RATE, RATE * frame, frame, bits)
    body = b"WAVE" + before + b"fmt " + struct.pack("<I", 16) + header + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(len(body) + size, 0xFFFFFFFF)) + body + samples


class TestStreamedWav:
    @pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF])
    def test_samples_arrive_while_the_file_is_written(self, pipe: Pipe, length: int) -> None:
        """Its length is unknown, and reading does not wait for its end."""
        pipe.write(wav(RAW[:50].tobytes(), length=length))
        source = open_pipe(pipe.reading, warn=fail)
        blocks = source.blocks()
        np.testing.assert_array_equal(next(blocks), RAW[:50])
        pipe.write(RAW[50:].tobytes())
        pipe.end()
        np.testing.assert_array_equal(np.concatenate(list(blocks)), RAW[50:])

    def test_header_may_arrive_byte_by_byte(self) -> None:
        data = wav(RAW.tobytes(), before=b"LIST" + struct.pack("<I", 5) + b"abcde\0")
        source = open_pipe(Trickle([data[index : index + 1] for index in range(len(data))]), warn=fail)
        np.testing.assert_array_equal(read_all(source), RAW)

    @pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
    @pytest.mark.parametrize(("channels", "format"), [(1, "WAV"), (2, "WAV"), (2, "WAVEX")])
    def test_every_kind_of_pcm_equals_the_file(self, tmp_path: Path, subtype: str, channels: int, format: str) -> None:
        path = tmp_path / "tone.wav"
        stereo = np.stack([tone(RATE), tone(RATE, frequency=1000.0)], axis=1)[:, :channels]
        soundfile.write(path, stereo, RATE, subtype=subtype, format=format)
        source = opened(path.read_bytes())
        assert not isinstance(source, FileSource)
        samples = read_all(source)
        scaled = samples / 32768 if samples.dtype == np.int16 else samples
        np.testing.assert_allclose(scaled, load_audio(path, RATE), atol=1e-7)

    def test_chunks_after_the_samples_are_ignored(self) -> None:
        data = wav(RAW.tobytes()) + b"LIST" + struct.pack("<I", 4) + b"junk"
        np.testing.assert_array_equal(read_all(opened(data)), RAW)

    def test_truncated_wav_is_refused_after_its_samples(self) -> None:
        source = opened(wav(RAW.tobytes(), length=RAW.nbytes + 10))
        blocks = source.blocks()
        np.testing.assert_array_equal(next(blocks), RAW)
        with pytest.raises(AudioInvalidError, match=f"{RAW.nbytes + 10} bytes of samples, only {RAW.nbytes}"):
            next(blocks)

    @pytest.mark.parametrize(("value", "subtype"), [(np.nan, "FLOAT"), (np.inf, "FLOAT"), (1e300, "DOUBLE")])
    def test_samples_that_are_not_finite_are_refused_with_their_index(
        self, tmp_path: Path, value: float, subtype: str
    ) -> None:
        samples = tone(RATE).astype(np.float64)
        samples[1600] = value
        soundfile.write(tmp_path / "nan.wav", samples, RATE, subtype=subtype)
        with pytest.raises(AudioInvalidError, match=r"sample 1600 \(0\.100 s\) is not a finite number"):
            read_all(opened((tmp_path / "nan.wav").read_bytes()))

    @pytest.mark.parametrize(
        "data",
        [
            wav(b"", bits=12),
            wav(b"", channels=0),
            wav(RAW.tobytes()).replace(b"fmt ", b"fmx "),
            wav(RAW.tobytes())[:30],
            wav(b"", before=b"LIST" + struct.pack("<I", 1 << 31)),
        ],
    )
    def test_invalid_header_is_refused_by_the_decoder(self, data: bytes) -> None:
        with pytest.raises(AudioInvalidError, match=r"^standard input: "):
            read_all(opened(data))
