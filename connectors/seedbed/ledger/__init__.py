"""The ledger: what stands where. SQLite by default, Postgres for many workers."""

from __future__ import annotations

from pathlib import Path

from seedbed.errors import ConfigError
from seedbed.ledger.base import UNKNOWN, Destination, Entry, Held, Ledger, RowFailure, RunRecord, Standing, State

__all__ = [
    "UNKNOWN",
    "Destination",
    "Entry",
    "Held",
    "Ledger",
    "RowFailure",
    "RunRecord",
    "Standing",
    "State",
    "open_ledger",
]


def open_ledger(url: str, *, create: bool = True) -> Ledger:
    """`sqlite:PATH` or `postgresql://…` (also `pgvector+embedded:DIR`).

    With `create=False` nothing is written: where no ledger stands, an empty one in memory answers.
    Raises ConfigError for another scheme, Refused for a ledger of a newer version.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite":
        from seedbed.ledger.sqlite import SqliteLedger

        return SqliteLedger(Path(rest) if create or Path(rest).exists() else None)
    if scheme in ("postgresql", "postgres", "pgvector+embedded"):
        from seedbed.ledger.postgres import PostgresLedger
        from seedbed.ledger.sqlite import SqliteLedger

        ledger = PostgresLedger(url)
        if ledger.prepare(create=create):
            return ledger
        ledger.close()
        return SqliteLedger(None)
    raise ConfigError(
        f"no ledger is known for {url!r}", setting="ledger.url", hint="sqlite:./NAME.ledger or postgresql://…"
    )
