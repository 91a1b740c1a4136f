"""What `[source]` says, checked; the same settings for every source of rows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from seedbed.duration import parse_duration
from seedbed.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """`table` or `query`, a condition, the key columns, and how changes are seen. `lag` is None where not given."""

    table: str | None = None
    query: str | None = None
    where: str | None = None
    key: tuple[str, ...] = ()
    changes: str = "scan"
    watermark: str | None = None
    lag: timedelta | None = None
    deleted: str | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> SourceSettings:
        """Raises ConfigError for unknown settings and values that do not go together."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise unknown("setting", name, known, f"source.{name}")
        given = {name: value for name, value in settings.items() if value is not None}
        key = given.pop("key", ())
        lag = given.pop("lag", None)
        made = cls(
            **given,
            key=(key,) if isinstance(key, str) else tuple(key),
            lag=None if lag is None else parse_duration(str(lag), "source.lag"),
        )
        made._check()
        return made

    def _check(self) -> None:
        if len(set(self.key)) != len(self.key):
            raise ConfigError("a key column is named twice", setting="source.key", hint="name each once")
        if self.changes not in ("scan", "watermark", "queue"):
            raise ConfigError(
                f"{self.changes!r} is no way to see changes",
                setting="source.changes",
                hint="known: scan, watermark, queue",
            )
        if self.changes == "queue" and self.query is not None:
            raise ConfigError(
                "a query's changes cannot be queued: triggers stand on tables, and only the query knows which of its "
                "rows a change of one of them touches",
                setting="source.query",
                hint='name a table, or set changes = "scan" or "watermark"',
            )
        if self.changes == "watermark" and not self.watermark:
            raise ConfigError(
                "which column tells when a row changed is not said",
                setting="source.watermark",
                hint='watermark = "updated_at"',
            )
        if self.watermark and self.changes != "watermark":
            raise ConfigError(
                f"a watermark column is named, but changes are seen by {self.changes}",
                setting="source.watermark",
                hint='set changes = "watermark", or leave the column out',
            )


def unknown(what: str, name: str, known: Iterable[str], setting: str) -> ConfigError:
    """The error for a name that is not there, with the nearest one that is."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    listed = ", ".join(names[:30]) + (" …" if len(names) > 30 else "")
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {listed}" if names else None
    return ConfigError(f"there is no {what} {name!r}", setting=setting, hint=hint)
