"""What a service counts, in Prometheus' words."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters of one service; a registry of its own, so that two services in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "detrove_requests", "Requests answered", ["method", "path", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "detrove_request_seconds",
            "From a request's head to its answer's end",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.received_bytes = Counter("detrove_received_bytes", "Bodies of requests", registry=self.registry)
        self.pictures = Counter("detrove_pictures", "Pictures computed", registry=self.registry)
        self.detections = Counter("detrove_detections", "Detections answered", registry=self.registry)
        self.batch_pictures = Histogram(
            "detrove_batch_pictures", "Pictures computed together", buckets=BATCHES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "detrove_batch_seconds", "Decoding and computing a batch", buckets=SECONDS, registry=self.registry
        )

    def observe_batch(self, num_pictures: int, seconds: float) -> None:
        """One batch was computed."""
        self.pictures.inc(num_pictures)
        self.batch_pictures.observe(num_pictures)
        self.batch_seconds.observe(seconds)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge that is read when somebody asks."""
        Gauge(name, what, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)
