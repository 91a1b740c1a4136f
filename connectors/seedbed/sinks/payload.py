"""Payload in and out of a store: its canonical types by name, and values as JSON shows them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pyarrow as pa

from seedbed.batch import TIMESTAMP
from seedbed.identity import canonical_value

TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "timestamp": TIMESTAMP,
    "list<string>": pa.list_(pa.string()),
    "list<int64>": pa.list_(pa.int64()),
    "list<double>": pa.list_(pa.float64()),
}
"""The canonical payload types by the names that are kept with a collection."""

_NAMES = {kind: name for name, kind in TYPES.items()}


def type_name(kind: pa.DataType) -> str:
    """The name in TYPES, for another type Arrow's own."""
    return _NAMES.get(kind, str(kind))


def payload_to_json(payload: pa.Schema) -> str:
    """`[["title", "string"], …]`, in order."""
    return json.dumps([[field.name, type_name(field.type)] for field in payload], ensure_ascii=False)


def payload_from_json(text: str) -> pa.Schema:
    """The inverse of `payload_to_json`."""
    return pa.schema([pa.field(name, TYPES[kind]) for name, kind in json.loads(text)])


def readable(value: Any) -> object:
    """A payload value as hits carry it: timestamps RFC 3339 UTC with microseconds, all else as JSON takes it."""
    return canonical_value(value) if isinstance(value, datetime) else value
