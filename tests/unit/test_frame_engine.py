"""The base class of frame engines, with a fake model that emits one token per frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.decoding.frames import FrameHypothesis
from runtime.engines.base import Engine, EngineOptions, Probe, SegmentJob, SegmentOptions, SegmentResult
from runtime.engines.frame import FrameEngine, FrameModel
from runtime.errors import OptionError
from runtime.results import Timings

RATE, HOP = 100, 10
NO_OPTIONS = SegmentOptions()


class OneTokenPerFrame(FrameEngine):
    """Emits the value of each frame that is not 0 as a token; the text has a space before every third token.

    Attributes:
        calls: rows and frames of each encoder call.
        decoded: number of rows of each decoder call.
    """

    def __init__(self, rows: int = 4, seconds: float | None = 4.0, **options: Any) -> None:
        self.calls: list[tuple[int, int]] = []
        self.decoded: list[int] = []
        model = FrameModel(RATE, segment_seconds=6.0, frame_seconds=HOP / RATE, frame_bytes=1000, work_bytes=1)
        artifact = cast(Any, SimpleNamespace(manifest=SimpleNamespace(family="one-token-per-frame", languages=[])))
        engine_options = EngineOptions(max_batch=rows, segment_seconds=seconds, **options)
        super().__init__(artifact, engine_options, model, {})

    def features(self, samples: np.ndarray) -> np.ndarray:
        frames = max(1, len(samples) // HOP)
        features = np.zeros((frames, 2), np.float32)
        features[: len(samples) // HOP, 0] = samples[: frames * HOP : HOP][: len(samples) // HOP]
        return features

    def encode(self, features: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert features.dtype == np.float32
        assert lengths.dtype == np.int64
        for row, length in zip(features, lengths, strict=True):
            assert not row[length:].any()
        self.calls.append((len(features), features.shape[1]))
        return features + 0, lengths

    def decode(
        self, encoded: Sequence[np.ndarray], budgets: Sequence[int | None], is_cancelled: Callable[[int], bool]
    ) -> Iterator[tuple[int, FrameHypothesis]]:
        self.decoded.append(len(encoded))
        for index in sorted(range(len(encoded)), key=lambda index: len(encoded[index])):
            if not is_cancelled(index):
                values = encoded[index][:, 0].astype(int)
                frames = np.flatnonzero(values).tolist()
                hypothesis = FrameHypothesis(
                    values[frames].tolist(), frames, [frame + 1 for frame in frames], [-0.5] * len(frames)
                )
                yield index, hypothesis.limited_to(budgets[index])

    def decode_tokens(self, tokens: Sequence[int]) -> str:
        return "".join(f"{' ' if index % 3 == 0 else ''}{token}" for index, token in enumerate(tokens))

    def probes(self, samples: np.ndarray, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        raise AssertionError


def clip(values: Sequence[int], cut: int = 0) -> np.ndarray:
    """Return samples with one frame for each value, without the last ``cut`` samples."""
    return np.repeat(np.array([*values], np.float32), HOP)[: len(values) * HOP - cut or None]


def run(engine: FrameEngine, clips: Sequence[np.ndarray], **fields: Any) -> dict[int, SegmentResult]:
    jobs = iter(
        [
            SegmentJob(
                index,
                samples,
                fields.get("options", NO_OPTIONS),
                Timings(),
                0.0,
                fields.get("is_cancelled", lambda: False),
            )
            for index, samples in enumerate(clips)
        ]
    )
    results = list(engine.run(lambda: next(jobs, None)))
    assert len({key for key, _ in results}) == len(results)
    return dict(results)


@given(clips=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), max_size=9), rows=st.integers(1, 4))
def test_segments_decoded_together_equal_single_runs(clips: list[list[int]], rows: int) -> None:
    engine = OneTokenPerFrame(rows)
    checked: Engine = engine  # the type checker compares it with the protocol
    results = run(engine, [clip(values) for values in clips])
    assert sorted(results) == list(range(len(clips)))
    for index, values in enumerate(clips):
        alone = checked.transcribe(clip(values), NO_OPTIONS, Timings())
        assert results[index] == alone
        assert alone.tokens == [value for value in values if value]
        assert (alone.audio_tokens, alone.prompt_tokens, alone.language) == (len(values), 0, None)
        assert " ".join(word.text for word in alone.words or []) == alone.text
    assert max(engine.decoded, default=1) <= rows
    assert sum(rows for rows, _ in engine.calls) == 2 * len(clips)
    for batch, frames in engine.calls:
        assert batch == 1 or batch * frames <= 2 * 40  # two segments of full length


def test_segments_of_similar_length_are_encoded_together() -> None:
    engine = OneTokenPerFrame(8)
    run(engine, [clip([1] * length) for length in (10, 40, 11, 39, 12, 2)])
    assert engine.calls == [(2, 40), (3, 12), (1, 2)]
    assert engine.decoded == [6]


def test_words_have_times_within_the_segment() -> None:
    result = OneTokenPerFrame().transcribe(clip([0, 1, 2, 0, 3, 0, 0, 4, 5], cut=4), NO_OPTIONS, Timings())
    assert result.text == "123 4"  # the last frame is not complete
    assert [(word.text, round(word.start, 3), round(word.end, 3)) for word in result.words or []] == [
        ("123", 0.1, 0.5),
        ("4", 0.7, 0.8),
    ]
    assert result.confidence == pytest.approx(np.exp(-0.5))
    silent = OneTokenPerFrame().transcribe(clip([0]), NO_OPTIONS, Timings())
    assert (silent.text, silent.tokens, silent.words, silent.confidence) == ("", [], [], 0.0)
    empty = OneTokenPerFrame().transcribe(np.zeros(0, np.float32), NO_OPTIONS, Timings())
    assert (empty.text, empty.words) == ("", [])


def test_max_new_tokens_sets_the_finish_reason() -> None:
    engine = OneTokenPerFrame()
    result = engine.transcribe(clip([1, 2, 3]), SegmentOptions(max_new_tokens=2), Timings())
    assert (result.tokens, result.finish_reason) == ([1, 2], "length")
    assert engine.transcribe(clip([1, 2]), SegmentOptions(max_new_tokens=2), Timings()).finish_reason == "stop"


def test_cancelled_segments_are_not_computed() -> None:
    engine = OneTokenPerFrame()
    assert run(engine, [clip([1]), clip([2])], is_cancelled=lambda: True) == {}
    assert (engine.calls, engine.decoded) == ([], [])
    checks = count()
    assert run(engine, [clip([1])], is_cancelled=lambda: next(checks) >= 1) == {}
    assert (engine.calls, engine.decoded) == ([(1, 1)], [])
    checks = count()
    assert run(engine, [clip([1])], is_cancelled=lambda: next(checks) >= 2) == {}
    assert engine.decoded == [1]


def test_a_result_may_add_a_job() -> None:
    engine, jobs = OneTokenPerFrame(2), [SegmentJob(0, clip([1]), NO_OPTIONS, Timings(), 0.0)]
    keys = []
    for key, _ in engine.run(lambda: jobs.pop() if jobs else None):
        keys.append(key)
        if key < 3:
            jobs.append(SegmentJob(key + 1, clip([1]), NO_OPTIONS, Timings(), 0.0))
    assert keys == [0, 1, 2, 3]


def test_stages_are_timed() -> None:
    timings = [Timings(), Timings()]
    jobs = iter([SegmentJob(index, clip([1] * 9), NO_OPTIONS, timings[index], 0.0) for index in range(2)])
    for _ in OneTokenPerFrame().run(lambda: next(jobs, None)):
        continue
    for each in timings:
        assert min(each.features, each.encode, each.decode, each.first_token) > 0
        assert each.prefill == 0


def test_segment_length_and_memory_are_limited() -> None:
    assert OneTokenPerFrame(seconds=None).segment_seconds == 6.0
    with pytest.raises(OptionError, match=r"\b7 s\b.*\b6 s\b"):
        OneTokenPerFrame(seconds=7.0)
    with pytest.raises(OptionError, match="is too small"):
        OneTokenPerFrame(memory=1000)
    plan = OneTokenPerFrame(3).plan
    assert (plan.positions, plan.row_bytes) == (40, 40_000)


def test_a_growing_segment_has_no_settled_samples() -> None:
    engine = OneTokenPerFrame(2)
    assert engine.live().settled == 0
    assert engine.read([1, 2], None, ended=False) == (None, "12")
