"""Estimate of the time after which a refused client should try again."""

from __future__ import annotations

from runtime.server.scheduling.throughput import Throughput


def test_retry_after_follows_the_rate_of_completed_requests() -> None:
    now = 0.0
    throughput = Throughput(lambda: now)
    assert throughput.retry_after(100) == 5
    for _ in range(10):
        throughput.ended()
        now += 2.0
    assert throughput.retry_after(1) == 2  # one request ends every two seconds
    assert throughput.retry_after(80) == 20  # an eighth of 80 requests is ten
    assert throughput.retry_after(10**6) == 120
    now = 18.001
    fast = Throughput(lambda: now)
    for _ in range(100):
        fast.ended()
    assert fast.retry_after(256) == 1
