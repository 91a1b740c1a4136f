"""How an emulated account and service are set up, in Python or by a URL."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from seedbed.errors import ConfigError
from seedbed.testing.ark.faults import Faults

MODELS = {
    "doubao-embedding-vision-250615": 250615,
    "doubao-embedding-vision-251215": 251215,
    "skylark-embedding-vision-250615": 250615,
    "skylark-embedding-vision-251215": 251215,
}
"""Model ids and their releases: from 251215 on a request may hold instructions and sampling of video."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Requests and tokens a minute, requests in flight, requests in any tenth of a second (`burst`); None is no limit.
    A bucket holds one second's worth."""

    rpm: float | None = None
    tpm: float | None = None
    in_flight: int | None = None
    burst: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """`keys` that are accepted, any that is not empty where there are none; `endpoints` an account's endpoint ids and
    the models behind them; `latency` in seconds; `retry_after` the header of a 429, in seconds; `prefix_1024` whether
    1,024 dimensions are the first of 2,048; `data_as_list` the shape of the older answer; `base64` whether there is
    that encoding."""

    keys: frozenset[str] = frozenset()
    endpoints: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    faults: Faults = field(default_factory=Faults)
    latency: float = 0.0
    retry_after: int | None = None
    prefix_1024: bool = False
    data_as_list: bool = False
    base64: bool = True


_NUMBERS = ("rpm", "tpm", "in_flight", "burst", "latency_ms", "share_429", "share_500", "seed", "retry_after")
_FLAGS = ("prefix_1024", "data_as_list")


def settings_of(url: str) -> Settings:
    """`emulator:?rpm=3000&latency_ms=50&share_429=0.05&key=…`. Raises ConfigError naming the parameter."""
    given = dict(parse_qsl(url.partition("?")[2], keep_blank_values=True))
    known = (*_NUMBERS, *_FLAGS, "key")
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{url!r}: no option {name!r} is known", setting="url", hint=hint)
    numbers = {name: _number(name, given[name]) for name in _NUMBERS if name in given}
    in_flight, burst, retry_after = (
        int(numbers[name]) if name in numbers else None for name in ("in_flight", "burst", "retry_after")
    )
    return Settings(
        keys=frozenset({given["key"]} if "key" in given else ()),
        limits=Limits(numbers.get("rpm"), numbers.get("tpm"), in_flight, burst),
        faults=Faults(numbers.get("share_429", 0.0), numbers.get("share_500", 0.0), int(numbers.get("seed", 0))),
        latency=numbers.get("latency_ms", 0.0) / 1000,
        retry_after=retry_after,
        prefix_1024=given.get("prefix_1024") == "true",
        data_as_list=given.get("data_as_list") == "true",
    )


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{name}={text!r} is no number", setting="url", hint=f"{name} is a number of at least 0")
    return value
