"""`--filter price>=3 --filter brand=x,y` as a Filter."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import click

_CONDITION = re.compile(r"\s*([^=<>!\s]+)\s*(>=|<=|=|>|<)\s*(.*)", re.DOTALL)
_OPERATORS = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt"}


def parse(conditions: Iterable[str]) -> dict[str, Any] | None:
    """Raises click.UsageError for what is no condition."""
    parsed: dict[str, Any] = {}
    for condition in conditions:
        found = _CONDITION.fullmatch(condition)
        if not found:
            raise click.UsageError(f"--filter {condition!r} is no condition; write k=v, k>=v or k=v1,v2")
        name, operator, value = found.groups()
        if operator != "=":
            ranges = parsed.setdefault(name, {})
            if not isinstance(ranges, dict):
                raise click.UsageError(f"--filter asks for {name!r} both a value and a range")
            ranges[_OPERATORS[operator]] = value
        elif name in parsed:
            raise click.UsageError(f"--filter names {name!r} twice; for one of several values write {name}=v1,v2")
        else:
            parsed[name] = value.split(",") if "," in value else value
    return parsed or None
