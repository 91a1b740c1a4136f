"""How far a watermark may go: never beyond what a transaction that is still running may yet commit.

A row gets its `updated_at` when its transaction starts or writes, and becomes visible when it commits. A cursor
at the newest value seen loses the rows that an older transaction commits later. So the cursor stops at the start
of the oldest transaction that ran just before the read; rows from there on are read again, and their hashes
say that they are not new. Where other roles' transactions cannot be seen it stays a fixed lag behind the clock.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from psycopg import sql

from seedbed.errors import ConfigError
from seedbed.sources.pg_session import ReadSession
from seedbed.sources.pg_types import Column

BLIND_LAG = timedelta(hours=1)
_log = logging.getLogger(__name__)

# A standby does not show its primary's transactions, and a prepared one has no start that can be seen.
_SIGHT = """
SELECT pg_has_role('pg_read_all_stats', 'USAGE') AND NOT pg_is_in_recovery()
       AND NOT EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database())"""
_BOUND = """
SELECT to_char({}, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') FROM (
    SELECT least(
        clock_timestamp() - {}::interval,
        (SELECT min(xact_start) FROM pg_stat_activity
         WHERE pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'
           AND (datname IS NULL OR datname = current_database())),
        (SELECT min(prepared) - {}::interval FROM pg_prepared_xacts WHERE database = current_database())
    ) AS bound) AS horizon"""


def horizon(session: ReadSession, column: Column, lag: timedelta | None) -> str:
    """The highest cursor that is safe for a read that starts after this call, as canonical UTC text.

    `lag` None: none where all transactions can be seen, else one hour.
    """
    session.connection()
    if lag is None:
        sees = bool(session.rows(sql.SQL(_SIGHT))[0][0])
        lag = timedelta(0) if sees else BLIND_LAG
        if not sees:
            _log.info("other transactions cannot be seen: the watermark stays %s behind the clock", lag)
    if column.type_name == "timestamptz":
        bound: sql.Composable = sql.SQL("bound AT TIME ZONE 'UTC'")
    else:
        # A timestamp without a zone is in that of the session that wrote it: the server's, or UTC.
        bound = sql.SQL("least(bound AT TIME ZONE {}, bound AT TIME ZONE 'UTC')").format(sql.Literal(session.time_zone))
    blind, fixed = sql.Literal(max(lag, BLIND_LAG)), sql.Literal(lag)
    return str(session.rows(sql.SQL(_BOUND).format(bound, fixed, blind))[0][0])


def check_column(column: Column) -> None:
    if column.item is not None or column.type_name not in ("timestamp", "timestamptz"):
        raise ConfigError(
            f"the watermark column {column.name!r} is of type {column.type_name}",
            setting="source.watermark",
            hint='name a timestamp or timestamptz column that every write sets, or set changes = "scan"',
        )
