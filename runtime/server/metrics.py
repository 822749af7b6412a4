"""Prometheus metrics of a server."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

AudioKind = Literal["file", "stream"]

# Upper bounds in seconds: a sentence takes a fraction of a second, an hour of speech many minutes.
_REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0)
# Upper bounds in seconds of the delays of live text.
_LIVE_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
_BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class Metrics:
    """Metrics of all models of a server, in a separate registry.

    Attributes:
        registry: registry with all metrics.
        requests: ``asr_requests_total{model, endpoint, status}``: answered requests.
        queue: ``asr_queue_requests{model}``: accepted requests that are not finished.
        streams: ``asr_streams{model}``: open live streams.
        rows: ``asr_rows_in_use{model}``: segments that are being decoded.
        batch: ``asr_batch_size{model}``: segments in decoding when one of them ends.
        audio: ``asr_audio_seconds_total{model, kind}``: seconds of each transcribed ``file``, or fed to a ``stream``.
        request_seconds: ``asr_request_seconds{model, endpoint}``: duration of requests.
        first_partial: ``asr_first_partial_seconds{model}``: seconds from the start of speech to its first text.
        final: ``asr_final_seconds{model}``: seconds from the audio that ends a segment to its final text.
        failures: ``asr_failures_total{model, reason}``: failed requests and streams.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "asr_requests", "Answered requests.", ["model", "endpoint", "status"], registry=registry
        )
        self.queue = Gauge("asr_queue_requests", "Accepted, unfinished requests.", ["model"], registry=registry)
        self.streams = Gauge("asr_streams", "Open live streams.", ["model"], registry=registry)
        self.rows = Gauge("asr_rows_in_use", "Segments being decoded.", ["model"], registry=registry)
        self.batch = Histogram(
            "asr_batch_size",
            "Segments in decoding when one of them ends.",
            ["model"],
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self.audio = Counter(
            "asr_audio_seconds", "Seconds of audio transcribed or fed.", ["model", "kind"], registry=registry
        )
        self.request_seconds = Histogram(
            "asr_request_seconds",
            "Duration of requests in seconds.",
            ["model", "endpoint"],
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self.first_partial = Histogram(
            "asr_first_partial_seconds",
            "Seconds from the start of speech to its first text.",
            ["model"],
            buckets=_LIVE_BUCKETS,
            registry=registry,
        )
        self.final = Histogram(
            "asr_final_seconds",
            "Seconds from the end of a segment to its final text.",
            ["model"],
            buckets=_LIVE_BUCKETS,
            registry=registry,
        )
        self.failures = Counter("asr_failures", "Failed requests and streams.", ["model", "reason"], registry=registry)

    def answered(self, model: str, endpoint: str, status: int, seconds: float) -> None:
        """Count a request that was answered with an HTTP status after ``seconds``."""
        self.requests.labels(model, endpoint, str(status)).inc()
        self.request_seconds.labels(model, endpoint).observe(seconds)

    def failed(self, model: str, error: BaseException) -> None:
        """Count a failure. The label ``reason`` is the type of the error."""
        self.failures.labels(model, type(error).__name__).inc()

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
