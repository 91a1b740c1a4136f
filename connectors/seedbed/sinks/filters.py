"""protocols.Filter, read once for all stores: checked against the payload's types, then a list of conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

from seedbed.batch import TIMESTAMP
from seedbed.errors import ConfigError
from seedbed.protocols import Filter
from seedbed.sinks.payload import type_name

RANGES = ("gt", "gte", "lt", "lte")
_NUMBERS = (pa.int64(), pa.float64())


@dataclass(frozen=True, slots=True)
class Condition:
    """`operator` is `in` (operand: a list of values) or one of RANGES (operand: one value).

    `kind` is the Arrow type of the field's values; for a list field (`of_list`) `in` holds where any of
    its elements is among the operands. A field that is NULL meets no condition.
    """

    field: str
    kind: pa.DataType
    of_list: bool
    operator: str
    operand: object


def conditions(filter: Filter | None, payload: pa.Schema) -> list[Condition]:
    """The conditions of a filter, all to hold. Raises ConfigError for an unknown field (naming the known
    ones), an unknown operator, a range over text or lists, and a value of another type."""
    found: list[Condition] = []
    for name, wanted in (filter or {}).items():
        kind = _kind(name, payload)
        of_list = pa.types.is_list(kind)
        item = kind.value_type if of_list else kind
        if isinstance(wanted, Mapping):
            found += [_range(name, kind, str(operator), value) for operator, value in wanted.items()]
        else:
            values = list(wanted) if isinstance(wanted, (list, tuple, set, frozenset)) else [wanted]
            found.append(Condition(name, item, of_list, "in", [_value(name, item, value) for value in values]))
    return found


def _kind(name: str, payload: pa.Schema) -> pa.DataType:
    if name == "_key":
        return pa.string()
    at = payload.get_field_index(name)
    if at < 0:
        raise ConfigError(
            f"there is no payload field {name!r} to filter by",
            setting="filter",
            hint=f"known: {', '.join(['_key', *payload.names])}",
        )
    return payload.field(at).type


def _range(name: str, kind: pa.DataType, operator: str, value: object) -> Condition:
    if operator not in RANGES:
        raise ConfigError(
            f"{operator!r} is no filter operator", setting=f"filter.{name}", hint=f"known: {', '.join(RANGES)}"
        )
    if kind != TIMESTAMP and kind not in _NUMBERS:
        # Stores order text by different rules, and some not at all.
        raise ConfigError(
            f"the field {name!r} is {type_name(kind)}: ranges are for numbers and timestamps",
            setting=f"filter.{name}",
            hint="use equality or a list of values",
        )
    return Condition(name, kind, False, operator, _value(name, kind, value))


def _value(name: str, kind: pa.DataType, value: object) -> object:
    """The operand in Python's type for the field; text is read, as the command line has only text."""
    try:
        if kind == pa.bool_():
            return {True: True, False: False, "true": True, "false": False}[value]
        if kind in _NUMBERS and not isinstance(value, bool):
            return _number(value, kind)
        if kind == TIMESTAMP:
            return _moment(value)
        if kind == pa.string() and isinstance(value, str):
            return value
    except (KeyError, ValueError, TypeError):
        pass
    raise ConfigError(f"{value!r} is no {type_name(kind)}", setting=f"filter.{name}")


def _number(value: object, kind: pa.DataType) -> int | float:
    if isinstance(value, str):
        value = int(value) if kind == pa.int64() and value.strip().lstrip("+-").isdigit() else float(value)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        value = int(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value)
    return value


def _moment(value: object) -> datetime:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime):
        raise TypeError
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
