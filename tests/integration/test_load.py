"""Tests of the load benchmark over a few seconds."""

from __future__ import annotations

import pytest

from benchmarks import serving
from tests.helpers.load_client import Answer


@pytest.mark.slow
def test_concurrent_clients_and_streams_get_their_own_texts() -> None:
    results = serving.clients(count=12, streams=2, seconds=4)
    for row in (results["files"], results["live"]):
        assert row["right"] == row["requests"] > 0
    assert results["files"]["requests"] >= 12
    assert all(size > 0 for size in results["resident_bytes"].values())
    assert results["batch_size"]["mean"] > 1


def test_outcomes_are_counted_separately() -> None:
    clip = serving.recordings()[0]
    tally = serving.Tally()
    right = b'{"text": "%b"}' % clip.text.encode()
    for status, body in ((200, right), (200, b'{"text": "another"}'), (429, b""), (500, b""), (400, b"")):
        tally.note(clip, Answer(status, body), 0.5)
    tally.lost(clip, TimeoutError())
    results = tally.results(2.0)
    assert {key: results[key] for key in ("requests", "right", "lost", "wrong", "refused")} == {
        "requests": 6,
        "right": 1,
        "lost": 2,
        "wrong": 2,
        "refused": 1,
    }
    assert results["latency"]["p99"] == 0.5
