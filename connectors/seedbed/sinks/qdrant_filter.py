"""Filters for Qdrant: the client's models and the embedded engine's types differ in their names alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa

from seedbed.batch import TIMESTAMP
from seedbed.identity import canonical_value
from seedbed.sinks.filters import Condition
from seedbed.sinks.qdrant_payload import path


class Words(NamedTuple):
    """The classes of one of the two vocabularies."""

    filter: Any
    field: Any
    match: Any
    match_any: Any
    range: Any
    time_range: Any


def filter_of(tests: Sequence[Condition], words: Words) -> Any | None:
    """All of the conditions; None for none."""
    return words.filter(must=[_condition(test, words) for test in tests]) if tests else None


def _condition(test: Condition, words: Words) -> Any:
    if test.operator != "in":
        return _range(test.field, test.kind, words, **{test.operator: test.operand})
    assert isinstance(test.operand, list)
    if test.kind in (pa.string(), pa.int64()):
        # An integer is never a fraction, and none is beyond 64 bits.
        return words.field(key=path(test.field), match=words.match_any(any=[v for v in test.operand if _whole(v)]))
    if test.kind == pa.bool_():
        choices = [words.field(key=path(test.field), match=words.match(value=value)) for value in test.operand]
    else:
        choices = [_range(test.field, test.kind, words, gte=value, lte=value) for value in test.operand]
    return words.filter(should=choices) if choices else words.field(key=path(test.field), match=words.match_any(any=[]))


def _whole(value: object) -> bool:
    return not isinstance(value, float)


def _range(field: str, kind: pa.DataType, words: Words, **bounds: object) -> Any:
    if kind == TIMESTAMP:
        moments = {name: _moment(value) for name, value in bounds.items()}
        return words.field(key=path(field), range=words.time_range(**moments))
    return words.field(key=path(field), range=words.range(**bounds))


def _moment(value: object) -> object:
    assert isinstance(value, datetime)
    return canonical_value(value)
