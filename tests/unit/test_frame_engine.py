"""What engines of frames have in common, with a model that says a token a frame."""

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
NOTHING = SegmentOptions()


class Counting(FrameEngine):
    """A token for each frame that is not silent; its value, and a space before every third."""

    def __init__(self, rows: int = 4, seconds: float | None = 4.0, **options: Any) -> None:
        self.calls: list[tuple[int, int]] = []
        self.decoded: list[int] = []
        model = FrameModel(RATE, segment_seconds=6.0, frame_seconds=HOP / RATE, frame_bytes=1000, work_bytes=1)
        artifact = cast(Any, SimpleNamespace(manifest=SimpleNamespace(family="counting", languages=[])))
        asked = EngineOptions(max_batch=rows, segment_seconds=seconds, **options)
        super().__init__(artifact, asked, model, {})

    def features(self, samples: np.ndarray) -> np.ndarray:
        frames = max(1, len(samples) // HOP)
        made = np.zeros((frames, 2), np.float32)
        made[: len(samples) // HOP, 0] = samples[: frames * HOP : HOP][: len(samples) // HOP]
        return made

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
                made = FrameHypothesis(
                    values[frames].tolist(), frames, [frame + 1 for frame in frames], [-0.5] * len(frames)
                )
                yield index, made.limited_to(budgets[index])

    def decode_tokens(self, tokens: Sequence[int]) -> str:
        return "".join(f"{' ' if index % 3 == 0 else ''}{token}" for index, token in enumerate(tokens))

    def probes(self, samples: np.ndarray, tokens: list[int], options: SegmentOptions) -> list[Probe]:
        raise AssertionError


def clip(values: Sequence[int], rest: int = 0) -> np.ndarray:
    return np.repeat(np.array([*values], np.float32), HOP)[: len(values) * HOP + rest or None]


def run(engine: FrameEngine, clips: Sequence[np.ndarray], **fields: Any) -> dict[int, SegmentResult]:
    jobs = iter(
        [
            SegmentJob(
                index,
                samples,
                fields.get("options", NOTHING),
                Timings(),
                0.0,
                fields.get("is_cancelled", lambda: False),
            )
            for index, samples in enumerate(clips)
        ]
    )
    found = list(engine.run(lambda: next(jobs, None)))
    assert len({key for key, _ in found}) == len(found)
    return dict(found)


@given(clips=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), max_size=9), rows=st.integers(1, 4))
def test_segments_together_are_as_alone(clips: list[list[int]], rows: int) -> None:
    engine = Counting(rows)
    checked: Engine = engine
    found = run(engine, [clip(values) for values in clips])
    assert sorted(found) == list(range(len(clips)))
    for index, values in enumerate(clips):
        alone = checked.transcribe(clip(values), NOTHING, Timings())
        assert found[index] == alone
        assert alone.tokens == [value for value in values if value]
        assert (alone.audio_tokens, alone.prompt_tokens, alone.language) == (len(values), 0, None)
        assert " ".join(word.text for word in alone.words or []) == alone.text
    assert max(engine.decoded, default=1) <= rows
    assert sum(rows for rows, _ in engine.calls) == 2 * len(clips)
    for together, frames in engine.calls:
        assert together == 1 or together * frames <= 2 * 40  # two segments of full length


def test_like_goes_with_like() -> None:
    engine = Counting(8)
    run(engine, [clip([1] * length) for length in (10, 40, 11, 39, 12, 2)])
    assert engine.calls == [(2, 40), (3, 12), (1, 2)]
    assert engine.decoded == [6]


def test_words_have_times_within_the_segment() -> None:
    found = Counting().transcribe(clip([0, 1, 2, 0, 3, 0, 0, 4, 5], rest=-4), NOTHING, Timings())
    assert found.text == "123 4"  # the last frame is not a whole one
    assert [(word.text, round(word.start, 3), round(word.end, 3)) for word in found.words or []] == [
        ("123", 0.1, 0.5),
        ("4", 0.7, 0.8),
    ]
    assert found.confidence == pytest.approx(np.exp(-0.5))
    silent = Counting().transcribe(clip([0]), NOTHING, Timings())
    assert (silent.text, silent.tokens, silent.words, silent.confidence) == ("", [], [], 0.0)
    nothing = Counting().transcribe(np.zeros(0, np.float32), NOTHING, Timings())
    assert (nothing.text, nothing.words) == ("", [])


def test_a_budget_cuts_and_says_so() -> None:
    engine = Counting()
    found = engine.transcribe(clip([1, 2, 3]), SegmentOptions(max_new_tokens=2), Timings())
    assert (found.tokens, found.finish_reason) == ([1, 2], "length")
    assert engine.transcribe(clip([1, 2]), SegmentOptions(max_new_tokens=2), Timings()).finish_reason == "stop"


def test_what_nobody_waits_for_is_not_computed() -> None:
    engine = Counting()
    assert run(engine, [clip([1]), clip([2])], is_cancelled=lambda: True) == {}
    assert (engine.calls, engine.decoded) == ([], [])
    asked = count()
    assert run(engine, [clip([1])], is_cancelled=lambda: next(asked) >= 1) == {}
    assert (engine.calls, engine.decoded) == ([(1, 1)], [])
    asked = count()
    assert run(engine, [clip([1])], is_cancelled=lambda: next(asked) >= 2) == {}
    assert engine.decoded == [1]


def test_there_may_be_work_again_after_results() -> None:
    engine, jobs = Counting(2), [SegmentJob(0, clip([1]), NOTHING, Timings(), 0.0)]
    keys = []
    for key, _ in engine.run(lambda: jobs.pop() if jobs else None):
        keys.append(key)
        if key < 3:
            jobs.append(SegmentJob(key + 1, clip([1]), NOTHING, Timings(), 0.0))
    assert keys == [0, 1, 2, 3]


def test_stages_are_timed() -> None:
    timings = [Timings(), Timings()]
    jobs = iter([SegmentJob(index, clip([1] * 9), NOTHING, timings[index], 0.0) for index in range(2)])
    for _ in Counting().run(lambda: next(jobs, None)):
        continue
    for each in timings:
        assert min(each.features, each.encode, each.decode, each.first_token) > 0
        assert each.prefill == 0


def test_segments_and_memory_have_bounds() -> None:
    assert Counting(seconds=None).segment_seconds == 6.0
    with pytest.raises(OptionError, match=r"segments of 7 s are too long: this model is made for 6 s at most"):
        Counting(seconds=7.0)
    with pytest.raises(OptionError, match="is too small"):
        Counting(memory=1000)
    plan = Counting(3).plan
    assert (plan.positions, plan.row_bytes) == (40, 40_000)


def test_of_a_growing_segment_nothing_is_settled() -> None:
    engine = Counting(2)
    assert engine.live().settled == 0
    assert engine.read([1, 2], None, ended=False) == (None, "12")
