"""Counts of ``benchmarks.fidelity`` and ``benchmarks.live_recordings``, and results that are stored one by one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer

from benchmarks.fidelity_reference import Text
from benchmarks.fidelity_summary import edge_difference, ended_by_guard, summary
from benchmarks.fidelity_systems import WAYS, System
from benchmarks.live_recordings import lateness, streams_of
from benchmarks.recordings import Recordings, Records, fingerprint
from runtime.families.whisper.timestamps import NextTokenRules, TimestampRules
from runtime.pipeline.events import Event, Final, Partial
from runtime.results import Segment

# A vocabulary of eight: 0 to 3 are text, 4 the stop, 5 no timestamps, 6 and 7 timestamps.
RULES = TimestampRules(stop_id=4, no_timestamps_id=5)


def reference(tokens: list[int], **changed: Any) -> dict[str, Any]:
    text = {"tokens": tokens, "seconds": [1], "leads": [0.5, 0.002, None], "edges": [[0.0, 1.0]]}
    return {
        "seconds": 2.0,
        "given": "fr",
        "detected": "fr",
        "features": 1e-5,
        "texts": dict.fromkeys(WAYS, text),
    } | changed


def actual(tokens: list[int], **changed: Any) -> dict[str, Any]:
    text = {"tokens": tokens, "language": "fr", "finish_reason": "stop", "text": "a", "edges": [[0.0, 1.004]]}
    difference = {"position": 1, "expected": 2, "actual": 3, "reference_lead": 1e-6, "lead": -1e-6}
    return {"texts": dict.fromkeys(WAYS, text | {"lead_change": 1e-5, "difference": difference} | changed)}


def test_summary_counts_equal_ended_and_differing_texts() -> None:
    parts = {
        "reference": {name: reference([1, 2]) for name in "abcd"},
        "cpu": {
            "a": actual([1, 2]),
            "b": actual([1], finish_reason="repetition"),
            "c": actual([1, 3], lead_change=2e-5, language="it"),
            "d": actual([1]),  # ended too early, by no guard
        },
        "rows-int8": {"a": {"alone": [1], "together": [1]}, "b": {"alone": [1], "together": [2]}},
    }
    results = summary(parts, lambda token: f"<{token}>")
    system = results["systems"]["cpu"]
    assert system["ways"]["given"] == {"compared": 4, "identical": 1, "ended": 1, "language": 3}
    assert len(system["differences"]) == 2 * len(WAYS)
    assert (
        system["differences"][0] | {"name": "c", "expected_text": "<2>", "actual_text": "<3>"}
        == (system["differences"][0])
    )
    assert system["lead_change"] == 2e-5
    assert system["edges"] == {"texts": 2, "largest": pytest.approx(0.004)}
    assert results["recordings"]["leads_below"] == {"0.001": 0, "0.01": 8, "0.1": 8}
    assert results["recordings"]["smallest_lead"] == 0.002
    assert results["rows"] == {"int8": {"compared": 2, "identical": 1}}
    assert summary({"cpu": parts["cpu"]}, str) == {}


def test_only_a_guard_explains_a_shorter_text() -> None:
    expected = {"tokens": [1, 2, 1, 2, 1, 2]}
    assert ended_by_guard({"tokens": [1, 2], "finish_reason": "repetition"}, expected)
    assert ended_by_guard({"tokens": [1, 2], "finish_reason": "length"}, expected)
    assert not ended_by_guard({"tokens": [1, 2], "finish_reason": "stop"}, expected)
    assert not ended_by_guard({"tokens": [1, 3], "finish_reason": "repetition"}, expected)


@pytest.mark.parametrize(
    ("edges", "expected", "difference"),
    [
        ([[0.0, 1.5]], [[0.0, 1.52]], 0.02),
        ([[0.0, 2.0]], [[0.0, 2.4]], 0.0),  # after the end of the audio
        ([[0.0, 1.0], [1.0, 2.0]], [[0.0, 1.0]], 0.0),  # the last part has no end
        ([[0.0, 1.0]], [[0.0, 1.0], [1.0, 1.8]], 2.0),  # a part is missing
    ],
)
def test_times_are_compared_within_the_audio(
    edges: list[list[float]], expected: list[list[float]], difference: float
) -> None:
    assert edge_difference(edges, expected, 2.0) == pytest.approx(difference)


def stub(timestamps: bool) -> Any:
    nothing = np.array([], np.int64)
    rules = {timestamps: NextTokenRules(nothing, nothing, RULES if timestamps else None)}
    return SimpleNamespace(
        engine=SimpleNamespace(_rules=rules, _timestamps=RULES, parameters=SimpleNamespace(stop_id=4))
    )


def test_leads_of_tokens_and_of_the_rule_on_timestamps() -> None:
    logits = np.array([3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 2.5, 2.5], np.float32)
    assert System.decisive_lead(stub(False), logits, [], 0, 1, timestamps=False) == 2.0
    # Time does not go back: the timestamp 6 is excluded, and 7 alone is less likely than the best text.
    assert System.decisive_lead(stub(True), logits, [6, 1], 7, 0, timestamps=True) == pytest.approx(-0.5)
    # Both timestamps together are likelier than the best text, so the rule leaves no text.
    logits[7] = 2.9
    both = np.logaddexp(2.5, 2.9) - 3.0
    assert System.decisive_lead(stub(True), logits, [1], 7, 0, timestamps=True) == pytest.approx(both)
    assert System.decisive_lead(stub(True), logits, [1], 0, 7, timestamps=True) == pytest.approx(-both)


def test_the_largest_change_of_a_lead() -> None:
    logits = np.array([[0, 2, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 5, 2, 0, 0]], np.float32)
    system = stub(False)
    system.logits = lambda *_, **__: logits
    text = Text([1], [2, 5], [1.25, 3.0])
    assert System.lead_change(system, logits[0], "fr", text, timestamps=False) == 0.25
    assert System.lead_change(system, logits[0], "fr", Text([1], [None, 5], [None, 2.5]), timestamps=False) == 0.5


def test_records_continue_after_the_last_whole_line(tmp_path: Path) -> None:
    records, made = Records(tmp_path / "work"), list[str]()

    def make(names: list[str]) -> list[dict[str, Any]]:
        made.extend(names)
        return [{"length": len(name)} for name in names]

    records.complete("part", ["a", "bb"], make)
    path = tmp_path / "work" / "part.jsonl"
    path.write_text(path.read_text() + '{"name": "ccc", "leng')
    result = records.complete("part", ["a", "bb", "ccc", "dddd"], make, together=2)
    assert made == ["a", "bb", "ccc", "dddd"]
    assert result["ccc"] == {"name": "ccc", "length": 3}
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == made
    assert records.complete("part", ["dddd"], make) == {"dddd": {"name": "dddd", "length": 4}}


def test_an_index_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"index\.json"):
        Recordings(tmp_path)
    (tmp_path / "index.json").write_text('[{"file": "a.wav"}]')
    with pytest.raises(typer.BadParameter, match="language"):
        Recordings(tmp_path)
    with pytest.raises(typer.BadParameter, match="missing"):
        fingerprint(tmp_path / "missing")


def test_the_fingerprint_depends_on_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "a").write_bytes(b"2")
    assert fingerprint(tmp_path) != first


def index(folder: Path, languages: dict[str, str]) -> Recordings:
    entries = [{"file": name, "language": code, "text": ""} for name, code in languages.items()]
    (folder / "index.json").write_text(json.dumps(entries))
    return Recordings(folder)


def test_streams_have_one_language_and_at_least_a_minute(tmp_path: Path) -> None:
    recordings = index(tmp_path, {"a": "en", "b": "fr", "c": "en", "d": "en", "e": "en", "f": "en"})
    seconds = {"a": 40.0, "b": 5.0, "c": 25.0, "d": 60.0, "e": 10.0, "f": 10.0}
    assert streams_of(recordings, seconds) == {"en-1": ["a", "c"], "en-2": ["d", "e", "f"], "fr-1": ["b"]}


def final(segment: int, start: float, end: float, text: str) -> Final:
    result = Segment(
        start=start, end=end, text=text, language="French", confidence=1.0, finish_reason="stop", tokens=[]
    )
    return Final(segment, result, as_offline=True)


def test_lateness_counts_from_the_estimated_end_of_each_word() -> None:
    events: list[tuple[float, Event]] = [
        (1.5, Partial(0, 0.0, 1.4, "", "one", "French")),
        (2.5, Partial(0, 0.0, 2.4, "one", " two", "French")),
        (5.0, final(0, 0.0, 4.0, "one four5")),
        (9.0, final(1, 6.0, 8.0, "")),
    ]
    late, first = lateness(events)
    assert late == [pytest.approx(2.5 - 4 * 3 / 8), pytest.approx(1.0)]
    assert first == [1.5]
