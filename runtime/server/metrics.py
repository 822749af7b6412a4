"""What a server counts, for Prometheus."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

AudioKind = Literal["file", "stream"]

# A sentence takes a fraction of a second, an hour of speech many minutes.
_REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0)
# What a person waits for while speaking.
_LIVE_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
_BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class Metrics:
    """Counters of all models of a server, in a registry of their own.

    Attributes:
        registry: what a scrape reads.
        requests: ``asr_requests_total{model, endpoint, status}``.
        queue: ``asr_queue_requests{model}``, accepted and not yet finished.
        streams: ``asr_streams{model}``, open.
        rows: ``asr_rows_in_use{model}``, segments that the engine has.
        batch: ``asr_batch_size{model}``, segments that the engine had when one of them ended.
        audio: ``asr_audio_seconds_total{model, kind}``, decoded for a ``file`` or a ``stream``.
        request_seconds: ``asr_request_seconds{model, endpoint}``.
        first_partial: ``asr_first_partial_seconds{model}``, from the begin of speech to its first text.
        final: ``asr_final_seconds{model}``, from the audio that ends a segment to its final text.
        failures: ``asr_failures_total{model, reason}``.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "asr_requests", "Requests answered.", ["model", "endpoint", "status"], registry=registry
        )
        self.queue = Gauge("asr_queue_requests", "Requests accepted and not finished.", ["model"], registry=registry)
        self.streams = Gauge("asr_streams", "Live streams open.", ["model"], registry=registry)
        self.rows = Gauge("asr_rows_in_use", "Segments that the engine has.", ["model"], registry=registry)
        self.batch = Histogram(
            "asr_batch_size",
            "Segments in the engine when one ended.",
            ["model"],
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self.audio = Counter("asr_audio_seconds", "Seconds of audio decoded.", ["model", "kind"], registry=registry)
        self.request_seconds = Histogram(
            "asr_request_seconds",
            "Seconds that requests took.",
            ["model", "endpoint"],
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self.first_partial = Histogram(
            "asr_first_partial_seconds",
            "Seconds from the begin of speech to its first text.",
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
        self.failures = Counter("asr_failures", "What went wrong.", ["model", "reason"], registry=registry)

    def answered(self, model: str, endpoint: str, status: int, seconds: float) -> None:
        """A request was answered with an HTTP status, ``seconds`` after it came."""
        self.requests.labels(model, endpoint, str(status)).inc()
        self.request_seconds.labels(model, endpoint).observe(seconds)

    def failed(self, model: str, error: BaseException) -> None:
        """Something went wrong; its reason is the error's type."""
        self.failures.labels(model, type(error).__name__).inc()

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)
