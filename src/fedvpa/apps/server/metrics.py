"""What Prometheus reads at /metrics. No label and no value holds anything of a text or a user."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One service's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fedvpa_requests", "Answered requests.", ("path", "method", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "fedvpa_request_seconds",
            "From the request's head to the answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "fedvpa_batch_requests", "Requests merged into one batch.", buckets=_SIZES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "fedvpa_batch_seconds", "Of the model, per batch.", buckets=_SECONDS, registry=self.registry
        )

    def answered(self, path: str, method: str, status: int, seconds: float) -> None:
        """Notes an answer."""
        self.requests.labels(path, method, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def batched(self, requests: int, seconds: float) -> None:
        """Notes a batch."""
        self.batch.observe(requests)
        self.batch_seconds.observe(seconds)

    def gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A figure that is looked up when Prometheus asks."""
        Gauge(f"fedvpa_{name}", what, registry=self.registry).set_function(value)

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
