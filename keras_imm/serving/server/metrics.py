"""Figures of a server, in the format of Prometheus."""

from collections.abc import Callable

import prometheus_client as prometheus

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_ROWS = tuple(2**i for i in range(11))


class Metrics:
    """Requests, seconds, rows and passes of one server, and memory of its process.

    Args:
        queued: Function that returns the rows under way.
    """

    def __init__(self, queued: Callable[[], int]):
        self._registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)  # where there is /proc
        self._requests = prometheus.Counter(
            "keras_imm_requests",
            "Requests by route and status of HTTP, or name of gRPC's status.",
            ["route", "status"],
            registry=registry,
        )
        self._seconds = prometheus.Histogram(
            "keras_imm_request_seconds",
            "Seconds from a request's head to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._rows = prometheus.Counter(
            "keras_imm_rows", "Rows that were asked for.", registry=registry
        )
        self._passes = prometheus.Histogram(
            "keras_imm_batch_rows",
            "Rows of a pass of the network.",
            buckets=_ROWS,
            registry=registry,
        )
        prometheus.Gauge(
            "keras_imm_queue_rows", "Rows under way.", registry=registry
        ).set_function(queued)

    def count_request(self, route: str, status: int | str, seconds: float) -> None:
        """Counts an answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_rows(self, rows: int) -> None:
        """Counts rows that a request asks for."""
        self._rows.inc(rows)

    def count_pass(self, rows: int) -> None:
        """Counts a pass of the network."""
        self._passes.observe(rows)

    def text(self) -> bytes:
        """All figures, in the text format 0.0.4."""
        return prometheus.generate_latest(self._registry)
