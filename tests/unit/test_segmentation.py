"""Tests of segmentation: order, limit and content of pieces, cuts at pauses, and bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.audio import load_audio
from runtime.audio.segmentation import (
    SPEECH_PROBABILITY,
    Piece,
    SpeechCutter,
    fixed_pieces,
    speech_pieces,
    split_piece,
)
from runtime.audio.vad import FRAME_SAMPLES
from runtime.errors import OptionError
from tests.conftest import DATA

RATE = 16_000
FRAMES_PER_SECOND = RATE / FRAME_SAMPLES


class Scripted:
    """Detector that returns given probabilities, frame by frame."""

    def __init__(self, speech: np.ndarray) -> None:
        self.speech = speech.astype(np.float32)
        self.samples = self.frames = 0

    def probabilities(self, samples: np.ndarray) -> np.ndarray:
        self.samples += len(samples)
        return self._until(self.samples // FRAME_SAMPLES)

    def finish(self) -> np.ndarray:
        return self._until(-(-self.samples // FRAME_SAMPLES))

    def _until(self, frame: int) -> np.ndarray:
        scores, self.frames = self.speech[self.frames : frame], frame
        return scores


def frames(*runs: tuple[float, float]) -> np.ndarray:
    """Return the probabilities of frames for runs of (seconds, probability)."""
    return np.concatenate([np.full(round(seconds * FRAMES_PER_SECOND), value) for seconds, value in runs])


def audio_for(speech: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return noise that is loud in frames with speech."""
    noise = np.random.default_rng(seed).standard_normal(len(speech) * FRAME_SAMPLES)
    return (noise * np.repeat(0.001 + 0.2 * (speech >= 0.3), FRAME_SAMPLES)).astype(np.float32)


def spans(pieces: list[Piece]) -> list[tuple[float, float]]:
    return [(piece.start / RATE, piece.end / RATE) for piece in pieces]


def cut(speech: np.ndarray, longest: float = 30.0) -> list[Piece]:
    return list(speech_pieces([audio_for(speech)], RATE, longest, Scripted(speech)))


scripts = st.lists(
    st.tuples(st.integers(1, 120), st.sampled_from([0.0, 0.1, 0.5, 1.0])), min_size=0, max_size=25
)  # runs of frames of one probability


@given(scripts, st.floats(0.2, 12.0), st.lists(st.integers(0, 60_000), max_size=20), st.integers(0, FRAME_SAMPLES - 1))
@settings(max_examples=80)
def test_pieces_contain_all_speech_and_no_long_pause(
    runs: list[tuple[int, float]], longest: float, cuts: list[int], short: int
) -> None:
    speech = np.concatenate([np.zeros(0), *(np.full(count, value) for count, value in runs)])
    samples = audio_for(speech)
    samples = samples[: max(0, len(samples) - short)]
    blocks = np.split(samples, np.minimum(np.cumsum(cuts, dtype=int), len(samples)))
    pieces = list(speech_pieces(blocks, RATE, longest, Scripted(speech), pause=1.5))
    covered = np.zeros(len(samples), np.int64)
    for piece in pieces:
        assert 0 < len(piece.samples) <= int(longest * RATE)
        assert piece.samples.dtype == np.float32
        np.testing.assert_array_equal(piece.samples, samples[piece.start : piece.end])
        covered[piece.start : piece.end] += 1
    assert [piece.start for piece in pieces] == sorted(piece.start for piece in pieces)
    assert covered.max(initial=0) <= 1  # no overlaps
    spoken = np.repeat(speech >= 0.3, FRAME_SAMPLES)[: len(samples)]
    assert np.all(covered[spoken] == 1)
    if not spoken.any():
        assert not pieces
    # Samples with no speech within a second on both sides are in a pause of 2 s or more, and never in a piece.
    counted = np.concatenate([[0], np.cumsum(spoken)])
    indices = np.arange(len(samples))
    around = counted[np.minimum(indices + RATE, len(samples))] - counted[np.maximum(indices - RATE, 0)]
    assert not (covered > 0)[around == 0].any()
    # The pieces do not depend on the lengths of blocks.
    whole = list(speech_pieces([samples], RATE, longest, Scripted(speech), pause=1.5))
    assert spans(whole) == spans(pieces)


@given(
    st.lists(st.tuples(st.integers(1, 160), st.integers(1, 400)), min_size=1, max_size=6), st.sampled_from([1.0, 5.0])
)
@example([(148, 280), (3, 1)], 5.0)  # the pause begins at the maximum length of a piece
@settings(max_examples=60, deadline=None)
def test_open_piece_is_never_too_long(runs: list[tuple[int, int]], longest: float) -> None:
    """Pauses that do not end a piece may be longer than the maximum length."""
    speech = np.concatenate([np.repeat([1.0, 0.0], run) for run in runs])
    cutter = SpeechCutter(RATE, longest, Scripted(speech), pause=10.0, live=True)
    samples = audio_for(speech)
    pieces: list[Piece] = []
    for start in range(0, len(samples), FRAME_SAMPLES):
        pieces += cutter.hear(samples[start : start + FRAME_SAMPLES])
        first, last = cutter.open or (0, 0)
        assert last - first <= longest * RATE
    pieces += cutter.end()
    assert all(before.end <= after.start for before, after in pairwise(pieces))
    assert all(len(piece.samples) <= longest * RATE for piece in pieces)
    covered = np.zeros(len(samples), bool)
    for piece in pieces:
        covered[piece.start : piece.end] = True
    assert covered.reshape(-1, FRAME_SAMPLES)[speech > 0].all()


def test_long_pauses_are_left_out_and_short_ones_stay() -> None:
    speech = frames((2, 0.01), (3, 0.99), (1.2, 0.02), (3, 0.95), (4, 0.05), (0.1, 0.6), (3, 0))
    assert np.array(spans(cut(speech))) == pytest.approx(np.array([(1.75, 9.45), (12.95, 13.55)]), abs=0.05)


def test_short_silence_at_the_ends_stays() -> None:
    """A short recording is transcribed unchanged."""
    speech = frames((0.4, 0), (3, 1), (0.4, 0))
    assert spans(cut(speech)) == [(0.0, len(speech) / FRAMES_PER_SECOND)]


def test_long_speech_is_cut_at_the_longest_pause_into_similar_parts() -> None:
    """31 s are not cut into 30 s and 1 s, and a longer pause is preferred to a later one."""
    speech = frames((3, 1), (0.4, 0), (9, 1), (0.9, 0), (4, 1), (0.3, 0), (11, 1), (0.3, 0), (2.1, 1))
    first, second = spans(cut(speech))
    assert first[1] == pytest.approx(3.4 + 9 + 0.25, abs=0.05)
    assert second[0] == pytest.approx(3.4 + 9 + 0.9 - 0.25, abs=0.05)
    # The same holds while more than two pieces are left, with a preference for longer pieces.
    speech = np.concatenate([frames((18, 1), (0.8, 0), (5, 1), (0.2, 0), (4, 1)), np.ones(2000)])
    assert spans(cut(speech))[0][1] == pytest.approx(18.25, abs=0.05)
    speech = np.concatenate([frames((16, 1), (0.3, 0), (11, 1), (0.25, 0), (1, 1)), np.ones(2000)])
    assert spans(cut(speech))[0][1] == pytest.approx(27.4, abs=0.15)
    # A pause of the earlier half is used only if the later half has none.
    speech = np.concatenate([frames((11, 1), (0.3, 0)), np.ones(2000)])
    assert spans(cut(speech))[0][1] == pytest.approx(11.15, abs=0.15)


def test_speech_without_pauses_is_cut_at_the_quietest_points() -> None:
    speech = np.ones(round(100 * FRAMES_PER_SECOND))
    samples = audio_for(speech)
    dips = [(22.0, 22.4), (41.0, 41.4), (60.3, 60.7), (80.0, 80.4)]
    for start, end in dips:
        samples[int(start * RATE) : int(end * RATE)] *= 0.05
    pieces = list(speech_pieces([samples], RATE, 30.0, Scripted(speech)))
    assert sum(len(piece.samples) for piece in pieces) == len(samples)
    for piece in pieces[:-1]:
        assert any(start < piece.end / RATE < end for start, end in dips)


def test_pieces_are_available_while_the_audio_is_read() -> None:
    speech = np.tile(frames((4, 1), (2, 0)), 50)
    samples = audio_for(speech)
    read = []

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(samples), 5 * RATE):
            read.append(start)
            yield samples[start : start + 5 * RATE]

    pieces = speech_pieces(blocks(), RATE, 30.0, Scripted(speech))
    for count, piece in enumerate(pieces, 1):
        assert len(read) * 5 <= piece.end / RATE + 1.5 + 5
        if count == 10:
            break
    assert len(read) < 20


@pytest.mark.parametrize("voice_activity", [True, False])
@pytest.mark.parametrize("pattern", [((400, 1.0),), ((50, 0.0),), ((7, 1.0), (0.4, 0.0)), ((1, 1.0), (2, 0.0))])
def test_an_hour_is_never_in_memory(voice_activity: bool, pattern: tuple[tuple[float, float], ...]) -> None:
    speech = np.resize(frames(*pattern), round(3600 * FRAMES_PER_SECOND)).astype(np.float32)

    def blocks() -> Iterator[np.ndarray]:
        for second in range(0, 3600, 10):
            yield np.full(10 * RATE, second, np.float32)

    tracemalloc.start()
    pieces = (
        speech_pieces(blocks(), RATE, 30.0, Scripted(speech)) if voice_activity else fixed_pieces(blocks(), RATE, 30)
    )
    seconds = sum(len(piece.samples) for piece in pieces) / RATE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds <= 3600
    assert peak < 24_000_000  # twice the 70 s that may be in the buffer, and the search in them; an hour is 230 MB


@given(scripts, st.floats(1.0, 12.0), st.booleans(), st.integers(300, 60_000))
@settings(max_examples=40, deadline=None)
def test_pieces_have_their_expected_seconds_of_speech(
    runs: list[tuple[int, float]], longest: float, live: bool, block: int
) -> None:
    probabilities = np.concatenate([np.zeros(0), *(np.full(count, value) for count, value in runs)])
    samples = audio_for(probabilities)
    cutter, pieces = SpeechCutter(RATE, longest, Scripted(probabilities), live=live), list[Piece]()

    def expected(first: int, last: int, heard: int) -> float:
        """Sum frames that start between two samples, of those that are complete in the samples heard."""
        starts = np.arange(heard // FRAME_SAMPLES) * FRAME_SAMPLES
        scores = probabilities[: len(starts)]
        within = (starts >= first) & (starts < last) & (scores >= SPEECH_PROBABILITY)
        return float(scores[within].sum() * FRAME_SAMPLES / RATE)

    for start in range(0, len(samples), block):
        pieces += cutter.hear(samples[start : start + block])
        if cutter.open:
            heard = expected(*cutter.open, min(start + block, len(samples)))
            assert cutter.speech(cutter.open) == pytest.approx(heard, abs=1e-3)
    pieces += cutter.end()
    seconds = [expected(piece.start, piece.end, len(samples)) for piece in pieces]
    assert [piece.speech for piece in pieces] == pytest.approx(seconds, abs=1e-3)


def test_without_voice_activity_the_seconds_of_speech_are_unknown() -> None:
    (piece,) = fixed_pieces([np.zeros(RATE, np.float32)], RATE, 2.0)
    assert piece.speech is None


@pytest.mark.parametrize("folder", ["", "evaluation"])
def test_no_speech_of_a_recording_is_lost(folder: str) -> None:
    """Each synthetic utterance is one piece, and only silence is left out."""
    index = json.loads((DATA / folder / "index.json").read_text(encoding="utf-8"))
    for entry in index:
        samples = load_audio(DATA / folder / entry["file"], RATE)
        (piece,) = speech_pieces([samples], RATE, 15.0)
        loudest = np.abs(samples).max()
        for rest in (samples[: piece.start], samples[piece.end :]):
            assert np.abs(rest).max(initial=0) < 0.01 * loudest


def test_recordings_with_long_pauses_are_separate_pieces() -> None:
    """Joins the sample recordings with three seconds of faint noise: each recording is one piece."""
    index = json.loads((DATA / "index.json").read_text(encoding="utf-8"))
    rng = np.random.default_rng(5)
    parts, bounds, offset = [], [], 0
    for entry in index:
        recording = load_audio(DATA / entry["file"], RATE)
        gap = (0.0005 * rng.standard_normal(3 * RATE)).astype(np.float32)
        bounds.append((offset, offset + len(recording)))
        parts += [recording, gap]
        offset += len(recording) + len(gap)
    pieces = list(speech_pieces(parts, RATE, 15.0))
    assert len(pieces) == len(index)
    for piece, (start, end) in zip(pieces, bounds, strict=True):
        assert start - 0.3 * RATE <= piece.start < start + 0.5 * RATE
        assert end - 0.5 * RATE < piece.end <= end + 0.5 * RATE


@given(st.integers(0, 200_000), st.floats(0.5, 30.0), st.integers(0, 5), st.lists(st.integers(0, 50_000), max_size=9))
@settings(max_examples=80)
def test_fixed_pieces_cover_all_samples_in_order(count: int, longest: float, seed: int, cuts: list[int]) -> None:
    rate = 1000
    samples = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    blocks = np.split(samples, np.minimum(np.cumsum(cuts, dtype=int), count))
    pieces = list(fixed_pieces(blocks, rate, longest))
    limit = int(longest * rate)
    assert sum(len(piece.samples) for piece in pieces) == count
    assert all(before.end == after.start for before, after in pairwise(pieces))
    assert all(len(piece.samples) <= limit for piece in pieces)
    if count:
        np.testing.assert_array_equal(np.concatenate([piece.samples for piece in pieces]), samples)
    if 0 < count <= limit:
        assert len(pieces) == 1
    if len(pieces) > 1:
        assert min(len(piece.samples) for piece in pieces) >= limit // 7  # no tiny pieces
    whole = fixed_pieces([samples], rate, longest)  # does not depend on the lengths of blocks
    assert [(piece.start, piece.end) for piece in whole] == [(piece.start, piece.end) for piece in pieces]


def test_fixed_pieces_are_cut_in_pauses(rng: np.random.Generator) -> None:
    samples = rng.standard_normal(40 * RATE).astype(np.float32)
    pauses = [(7.4, 7.9), (14.0, 14.4), (22.6, 23.1), (29.5, 30.0), (36.2, 36.6)]
    for start, end in pauses:
        samples[int(start * RATE) : int(end * RATE)] *= 0.01
    for piece in list(fixed_pieces([samples], RATE, 10.0))[:-1]:
        assert any(start < piece.end / RATE < stop for start, stop in pauses)


@given(st.integers(0, 20_000), st.integers(1, 9), st.integers(0, 10**6))
def test_split_piece_covers_all_samples(count: int, parts: int, start: int) -> None:
    piece = Piece(start, np.random.default_rng(count).standard_normal(count).astype(np.float32))
    for results in (split_piece(piece, 1000, parts=parts), split_piece(piece, 1000, longest=0.7)):
        assert results[0].start == piece.start
        assert results[-1].end == piece.end
        assert all(before.end == after.start for before, after in pairwise(results))
        np.testing.assert_array_equal(np.concatenate([part.samples for part in results]), piece.samples)
    assert all(len(part.samples) <= 700 for part in split_piece(piece, 1000, longest=0.7))
    results = split_piece(piece, 1000, parts=parts)
    assert len(results) == max(1, min(parts, count))
    assert all(len(part.samples) >= min(1, count) for part in results)


def test_split_piece_cuts_at_the_quietest_point(rng: np.random.Generator) -> None:
    samples = rng.standard_normal(20 * RATE).astype(np.float32)
    samples[9 * RATE : int(9.5 * RATE)] *= 0.01
    first, second = split_piece(Piece(500, samples), RATE, parts=2)
    assert 9 < (first.end - 500) / RATE < 9.5
    assert second.end == 500 + len(samples)


def test_invalid_options_are_refused() -> None:
    for longest in (0.0, -1.0, float("nan"), float("inf"), 1e-9):
        with pytest.raises(OptionError, match="positive"):
            speech_pieces([], RATE, longest)
        with pytest.raises(OptionError, match="positive"):
            fixed_pieces([], RATE, longest)
    with pytest.raises(OptionError, match="16000 Hz, not at 8000"):
        speech_pieces([], 8000, 30.0)
    with pytest.raises(OptionError, match=r"0\.5 to 60 s"):
        speech_pieces([], RATE, 30.0, pause=0.2)
    piece = Piece(0, np.zeros(10, np.float32))
    with pytest.raises(OptionError, match="number of parts"):
        split_piece(piece, RATE)
    with pytest.raises(OptionError, match="number of parts"):
        split_piece(piece, RATE, parts=0)
    with pytest.raises(OptionError, match="number of parts"):
        split_piece(piece, RATE, parts=2, longest=1.0)
