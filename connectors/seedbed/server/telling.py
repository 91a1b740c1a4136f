"""What a server tells of itself: Prometheus metrics, and a line of JSON a request. No content and no key in either."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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


class Telling:
    """`log` writes a line a request to stderr."""

    def __init__(self, service: Service, *, log: bool) -> None:
        self._log = log
        self._service = service
        self._registry = registry = CollectorRegistry()
        labels = ("route", "caller")
        self._requests = Counter("seedbed_requests", "Requests", (*labels, "status"), registry=registry)
        self._inputs = Counter("seedbed_inputs", "Contents embedded or found", labels, registry=registry)
        self._tokens = Counter("seedbed_tokens", "Tokens of them", labels, registry=registry)
        self._seconds = Histogram("seedbed_seconds", "Of a request", ("route",), buckets=_SECONDS, registry=registry)
        self._batches = Histogram("seedbed_batch_size", "Contents a call", buckets=_SIZES, registry=registry)
        service.batcher.on_batch = self._batches.observe
        self._gauge("seedbed_ready", "1 once the model is loaded", lambda: float(service.batcher.ready.is_set()))
        self._gauge("seedbed_waiting", "Requests and contents that wait", self._waiting)
        self._gauge("seedbed_cache_bytes", "Of the shared cache", lambda: float(service.cache.bytes))
        self._gauge("seedbed_cache_hits_total", "Contents found", lambda: float(service.hits))
        self._gauge("seedbed_cache_misses_total", "Contents embedded", lambda: float(service.misses))

    def _gauge(self, name: str, words: str, read: object) -> None:
        Gauge(name, words, registry=self._registry).set_function(read)  # type: ignore[arg-type]

    def _waiting(self) -> float:
        return float(self._service.batcher.waiting + self._service.in_flight)

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
