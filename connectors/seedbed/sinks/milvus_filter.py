"""Filters as Milvus' expressions over the dynamic field, the same answers from a server and from milvus-lite.

A value is looked up by `$meta["name"]`, which takes any name. milvus-lite's parser knows neither
`$meta[…] in` nor `json_contains($meta[…])`; a server cannot read -2^63 and aborts on a list of mixed types.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from seedbed.identity import canonical_value
from seedbed.sinks.filters import Condition

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# What milvus-lite's tokenizer does not read as a name.
_WORDS = frozenset({"and", "or", "not", "in", "like", "is", "null", "exists", "true", "false"})
_SYMBOLS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_LEAST = -(2**63)


def stored_name(name: str, kind: pa.DataType, *, embedded: bool) -> str:
    """The key of a payload field in the dynamic field: its own name, where filters can be written with it."""
    if not embedded or not pa.types.is_list(kind) or (_PLAIN.fullmatch(name) and name.lower() not in _WORDS):
        return name
    # Payload never begins with "_", so this is nobody else's name.
    return "_x" + name.encode().hex()


def expression(tests: Sequence[Condition], *, embedded: bool) -> str | None:
    """The conditions as one expression, "" for none; None where no point can meet them."""
    made: list[str] = []
    for test in tests:
        one = _one(test, embedded)
        if one is None:
            return None
        made.append(f"({one})")
    return " and ".join(made)


def text(value: str) -> str:
    """A literal. Both parsers read these escapes and take all else as it is."""
    return f'"{value.translate(_ESCAPES)}"'


def _one(test: Condition, embedded: bool) -> str | None:
    if test.operator == "in":
        values = test.operand if isinstance(test.operand, list) else [test.operand]
        return _among(test, values, embedded)
    left = f"$meta[{text(test.field)}]"
    operator, value = test.operator, test.operand
    if test.kind == pa.int64() and isinstance(value, (int, float)):
        operator, whole = _whole_bound(operator, value)
        if not -(2**63) <= whole < 2**63:
            reaches = (whole > 0) == operator.startswith("l")
            return f"{left} >= 0 or {left} < 0" if reaches else None
        value = whole
    return f"{left} {_SYMBOLS[operator]} {_literal(value, test.kind, embedded)}"


def _among(test: Condition, values: Sequence[Any], embedded: bool) -> str | None:
    if test.kind == pa.int64():
        # 2.5 is no int64 and equals none.
        values = [value for value in values if isinstance(value, int)]
    literals = list(dict.fromkeys(_literal(value, test.kind, embedded) for value in values))
    if not literals:
        return None
    if test.field == "_key":
        return f"_key in [{', '.join(literals)}]"
    name = stored_name(test.field, pa.list_(test.kind) if test.of_list else test.kind, embedded=embedded)
    left = f"$meta[{text(name)}]"
    if test.of_list:
        return f"json_contains_any({name if embedded else left}, [{', '.join(literals)}])"
    if embedded:
        return " or ".join(f"{left} == {literal}" for literal in literals)
    return f"{left} in [{', '.join(literals)}]"


def _whole_bound(operator: str, value: int | float) -> tuple[str, int]:
    """The same range over integers with an integral bound, as 2^53 + 1 is no double."""
    if isinstance(value, int):
        return operator, value
    if value.is_integer():
        return operator, int(value)
    return ("gte", math.ceil(value)) if operator.startswith("g") else ("lte", math.floor(value))


def _literal(value: Any, kind: pa.DataType, embedded: bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return text(str(canonical_value(value)))
    if isinstance(value, str):
        return text(value)
    if kind == pa.float64():
        return repr(float(value))
    # A server's parser reads the digits before the sign, and 2^63 is out of its range.
    return "-9223372036854775807 - 1" if value == _LEAST and not embedded else str(value)
