"""Tests that time stamps of containers decide where audio lies, and which of several tracks is read."""

from __future__ import annotations

import io

import numpy as np
import pytest

from runtime.audio import AudioReader, open_audio
from runtime.errors import AudioInvalidError, OptionError
from tests.conftest import REPOSITORY
from tests.helpers.recordings import RATE, encoded, sound, tone, tracks

FORMATS = REPOSITORY / "tests" / "formats"
LOW, HIGH = 440.0, 1000.0


def read(data: bytes, track: int | None = None, warnings: list[str] | None = None) -> np.ndarray:
    with opened(data, track, warnings) as reader:
        return np.concatenate(list(reader.blocks()))


def opened(data: bytes, track: int | None = None, warnings: list[str] | None = None) -> AudioReader:
    warn = warnings.append if warnings is not None else pytest.fail
    return open_audio(io.BytesIO(data), RATE, track=track, name="talk", warn=warn)


def bounds(samples: np.ndarray) -> list[float]:
    """Return start and end in seconds of each stretch of sound; pauses have at least 50 ms."""
    loud = np.flatnonzero(np.abs(samples) > 0.1) / RATE
    edges = np.flatnonzero(np.diff(loud) > 0.05)
    return [float(value) for value in np.sort(np.concatenate([loud[[0, -1]], loud[edges], loud[edges + 1]]))]


def frequency(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples)))) * RATE / len(samples)


@pytest.mark.parametrize(
    ("format", "codec", "rate"),
    [
        ("matroska", "libopus", 48_000),
        ("matroska", "flac", RATE),
        ("webm", "libopus", 48_000),
        ("mp4", "aac", 44_100),
        ("mov", "pcm_s16le", RATE),
        ("flv", "aac", 44_100),
    ],
)
@pytest.mark.parametrize("start", [0.0, 0.25, 5.0])
def test_late_tracks_keep_their_times(format: str, codec: str, rate: int, start: float) -> None:
    data = encoded(tone(2.0, rate=rate), format, codec, rate=rate, start=start)
    samples = read(data)
    first, last = bounds(samples)
    # AAC in these containers begins with a frame of priming samples, which is removed only in MP4.
    assert first == pytest.approx(start, abs=0.06)
    assert last == pytest.approx(start + 2.0, abs=0.08)
    assert len(samples) / RATE == pytest.approx(start + 2.0, abs=0.1)


@pytest.mark.parametrize(
    ("format", "codec", "rate"),
    [("matroska", "libopus", 48_000), ("webm", "libopus", 48_000), ("matroska", "flac", RATE)],
)
def test_gaps_are_silence(format: str, codec: str, rate: int) -> None:
    """Two gaps: after 1 s, 3 s of nothing; a gap at the start too."""
    samples = read(encoded(tone(2.0, rate=rate), format, codec, rate=rate, start=1.0, gap=(1.0, 3.0)))
    assert bounds(samples) == pytest.approx([1.0, 2.0, 5.0, 6.0], abs=0.1)


def test_gaps_are_read_block_by_block() -> None:
    with opened(encoded(tone(1.0), "matroska", "flac", start=600.0)) as reader:
        lengths = [len(block) for block in reader.blocks()]
    assert max(lengths) <= 11 * RATE
    assert sum(lengths) / RATE == pytest.approx(601.0, abs=0.1)


def test_lost_packets_of_a_call_do_not_cut_words() -> None:
    """Jitter of 20 ms adds no silence."""
    plain = read(encoded(tone(2.0, rate=48_000), "matroska", "libopus", rate=48_000))
    jittered = read(encoded(tone(2.0, rate=48_000), "matroska", "libopus", rate=48_000, gap=(1.0, 0.03)))
    assert len(plain) == len(jittered)


def test_times_of_a_broadcast_begin_anywhere() -> None:
    data = encoded(tone(2.0), "mpegts", "aac", start=5000.0)
    assert bounds(read(data)) == pytest.approx([0.05, 2.06], abs=0.07)


def test_clock_that_starts_at_a_date_is_no_silence() -> None:
    """A live WebM without a duration can start at any time."""
    warnings: list[str] = []
    data = encoded(tone(2.0, rate=48_000), "webm", "libopus", rate=48_000, start=50_000.0, pipe=True)
    assert len(read(data, warnings=warnings)) / RATE == pytest.approx(2.0, abs=0.1)
    assert [warning for warning in warnings if "time stamps" in warning]


@pytest.mark.parametrize(("format", "codec", "rate"), [("flv", "aac", 44_100), ("mp4", "aac", RATE)])
def test_small_file_has_no_hours_of_silence(format: str, codec: str, rate: int) -> None:
    """One wrong byte of a header moves a track by weeks."""
    warnings: list[str] = []
    data = encoded(tone(1.0, rate=rate), format, codec, rate=rate, start=90_000.0)
    assert len(read(data, warnings=warnings)) / RATE == pytest.approx(1.0, abs=0.1)
    assert len(warnings) == 1


def test_longer_tracks_refuse_nothing() -> None:
    with opened((FORMATS / "subtitles.mka").read_bytes()) as reader:
        assert reader.duration is None  # that of the container belongs to the subtitles
        assert sum(map(len, reader.blocks())) / RATE == pytest.approx(1.5, abs=0.02)
    assert len(read(tracks([(tone(1.0), 0.0), (tone(9.0), 0.0)], "matroska", "flac"))) / RATE == pytest.approx(1.0)


@pytest.mark.parametrize(("format", "codec"), [("matroska", "flac"), ("mp4", "aac"), ("mpegts", "aac")])
def test_chosen_track_is_read(format: str, codec: str) -> None:
    data = tracks([(tone(2.0, LOW), 0.0), (tone(2.0, HIGH), 0.0)], format, codec)
    assert frequency(read(data)) == pytest.approx(LOW, abs=5)
    assert frequency(read(data, track=0)) == pytest.approx(LOW, abs=5)
    assert frequency(read(data, track=1)) == pytest.approx(HIGH, abs=5)


def test_default_track_is_read() -> None:
    data = tracks([(tone(2.0, LOW), 0.0), (tone(1.0, HIGH), 3.0)], "matroska", "flac", default=1)
    samples = read(data)
    assert bounds(samples) == pytest.approx([3.0, 4.0], abs=0.06)
    assert frequency(samples[3 * RATE :]) == pytest.approx(HIGH, abs=5)


def test_absent_track_is_refused_with_the_tracks_there_are() -> None:
    data = tracks([(tone(1.0), 0.0), (tone(1.0), 0.0)], "matroska", "flac")
    with pytest.raises(OptionError, match=r"no audio track 2; it has 0 \(eng\), 1 \(deu\)") as caught:
        read(data, track=2)
    assert caught.value.option == "track"
    for single in (sound(tone(1.0), "WAV"), sound(tone(1.0), "OGG", "OPUS"), sound(tone(1.0), "MP3")):
        assert len(read(single, track=0))
        with pytest.raises(OptionError, match="no audio track 1; it has 0"):
            read(single, track=1)


def test_container_without_audio_is_refused() -> None:
    with pytest.raises(AudioInvalidError, match="no audio track"):
        read((FORMATS / "no-audio.mkv").read_bytes())


def test_edit_list_removes_priming_samples() -> None:
    """AAC begins with 1024 samples before the recording; MP4 declares them, and players leave them out."""
    click = np.zeros(RATE, np.float32)
    click[RATE // 2 :] = tone(0.5)
    (first, _last) = bounds(read(encoded(click, "mp4", "aac")))
    assert first == pytest.approx(0.5, abs=0.01)
