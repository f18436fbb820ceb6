"""The API's own numbers, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """A registry of one application, so that two in one process (tests) don't meet."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "studio_http_requests_total", "Requests that ended.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "studio_http_request_seconds",
            "From the first byte to the last; a stream counts as long as it was open.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.up = Gauge(
            "studio_dependency_up", "1 when the dependency answered just now.", ["dependency"], registry=self._registry
        )

    def observe(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that ended."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def render(self) -> bytes:
        """The text format."""
        return generate_latest(self._registry)
