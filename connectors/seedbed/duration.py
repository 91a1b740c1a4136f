"""Lengths of time as pipeline files write them: "90s", "5m", "1h30m", "2d"."""

from __future__ import annotations

import re
from datetime import timedelta

from seedbed.errors import ConfigError

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")


def parse_duration(text: str, setting: str) -> timedelta:
    """A length of time, each unit at most once. Raises ConfigError, which names `setting`."""
    parts = _PART.findall(text) if _WHOLE.fullmatch(text.rstrip()) else []
    amounts = {_UNITS[unit]: float(number) for number, unit in parts}
    if not parts or len(amounts) < len(parts):
        raise _wrong(text, setting)
    try:
        return timedelta(**amounts)
    except OverflowError:
        raise _wrong(text, setting) from None


def _wrong(text: str, setting: str) -> ConfigError:
    return ConfigError(f"{text!r} is no length of time", setting=setting, hint='write "90s", "5m", "1h30m", "2d"')
