"""What a server tells of itself: Prometheus metrics, and a line of JSON a request. No content and no key in either."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import orjson
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from seedbed.server.service import Service

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, slots=True)
class Told:
    """One request."""

    route: str
    status: int
    caller: str
    inputs: int
    tokens: int
    seconds: float


class _State(Collector):
    """What the service itself counts, read when somebody asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service = self._service
        waiting = service.batcher.waiting + service.in_flight
        yield GaugeMetricFamily("seedbed_ready", "1 once the model is loaded", float(service.batcher.ready.is_set()))
        yield GaugeMetricFamily("seedbed_waiting", "Requests and contents that wait", waiting)
        yield GaugeMetricFamily("seedbed_cache_bytes", "Of the shared cache", service.cache.bytes)
        yield CounterMetricFamily("seedbed_cache_hits", "Contents found", service.hits)
        yield CounterMetricFamily("seedbed_cache_misses", "Contents embedded", service.misses)


class Telling:
    """`log` writes a line a request to stderr."""

    def __init__(self, service: Service, *, log: bool) -> None:
        self._log = log
        self._registry = registry = CollectorRegistry()
        labels = ("route", "caller")
        self._requests = Counter("seedbed_requests", "Requests", (*labels, "status"), registry=registry)
        self._inputs = Counter("seedbed_inputs", "Contents embedded or found", labels, registry=registry)
        self._tokens = Counter("seedbed_tokens", "Tokens of them", labels, registry=registry)
        self._seconds = Histogram("seedbed_seconds", "Of a request", ("route",), buckets=_SECONDS, registry=registry)
        self._batches = Histogram("seedbed_batch_size", "Contents a call", buckets=_SIZES, registry=registry)
        service.batcher.on_batch = self._batches.observe
        registry.register(_State(service))

    def note(self, told: Told) -> None:
        self._requests.labels(told.route, told.caller, str(told.status)).inc()
        self._inputs.labels(told.route, told.caller).inc(told.inputs)
        self._tokens.labels(told.route, told.caller).inc(told.tokens)
        self._seconds.labels(told.route).observe(told.seconds)
        if self._log:
            line = {
                "time": round(time.time(), 3),
                "route": told.route,
                "status": told.status,
                "caller": told.caller,
                "inputs": told.inputs,
                "tokens": told.tokens,
                "milliseconds": round(told.seconds * 1000, 3),
            }
            sys.stderr.write(orjson.dumps(line).decode() + "\n")

    def metrics(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)
