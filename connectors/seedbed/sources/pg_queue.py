"""Changes captured by triggers into `seedbed_queue` (sql/queue.sql): watching a table, and working off what changed.

A worker leases changes, reads their rows by key, and takes them out of the queue once they are done. What changed
again meanwhile has a number beyond those that the pass began with, so it stays. A dead worker's leases run out.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from seedbed.errors import ConfigError, Refused, SeedbedError, Transient
from seedbed.identity import key_parts, position
from seedbed.postgres import Database, mapped
from seedbed.protocols import Feed, Page, Selection, Waiting
from seedbed.sources.pg_relation import Relation, condition

LEASE = 60.0
"""Seconds after which a worker that says nothing more has lost what it took."""
_RENEWED = LEASE / 4
_TAKEN = 2048
_TRIES = 10
"""To give back changes that writers hold; most hold them for milliseconds. The others come back with their leases."""
CHANNEL = "seedbed_queue"

Read = Callable[[Selection], Iterator[Page]]


class Queue:
    """One connection to the schema `seedbed_queue`, used by several threads in turn."""

    def __init__(self, url: str) -> None:
        self._database = Database(url, setting="source.url")
        self._guard = threading.RLock()

    def rows(self, statement: str, *parameters: object) -> list[TupleRow]:
        with self._guard, mapped("source.url"):
            cursor = self._database.kept().execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def connect(self) -> psycopg.Connection[TupleRow]:
        return self._database.connect()

    def close(self) -> None:
        with self._guard:
            self._database.close()

    # --- watching -----------------------------------------------------------------------------------

    def stands(self) -> bool:
        """Raises Refused for a queue whose functions somebody else could have written, as they run with our rights."""
        if self.rows("SELECT to_regclass('seedbed_queue.change') IS NULL")[0][0]:
            return False
        if self.rows(OF_OTHERS)[0][0]:
            raise of_others()
        return True

    def watch(self, name: str, relation: Relation, columns: Sequence[str], where: str | None) -> None:
        """Raises ConfigError for a relation whose changes cannot be queued, Fatal without the rights."""
        table = relation.source.as_string(None)
        with self._guard, mapped("source.url"), (connection := self._database.kept()).transaction():
            if not self.stands():
                connection.execute(files("seedbed.sql").joinpath("queue.sql").read_bytes())
            connection.execute(
                "SELECT seedbed_queue.watch(%s::text, %s::regclass, %s::text[], %s::text[])",
                [name, table, _key_names(relation), [*columns, *self.named_by(relation, where, columns)]],
            )

    def unwatch(self, name: str) -> bool:
        return self.stands() and self.rows("SELECT seedbed_queue.unwatch(%s::text)", name)[0][0] is True

    def named_by(self, relation: Relation, where: str | None, beside: Sequence[str] = ()) -> list[str]:
        """The columns that a condition reads, as the server itself notes them for a view, beside those known."""
        if where is None:
            return []
        view = sql.SQL("CREATE TEMP VIEW seedbed_condition AS SELECT 1 FROM {} WHERE {}")
        with self._guard, mapped("source.where"):
            connection = self._database.kept()
            with connection.transaction(force_rollback=True):
                connection.execute(view.format(relation.source, condition(where)))
                found = connection.execute(_NAMED, [relation.source.as_string(None)]).fetchall()
        return sorted({name for (name,) in found} - {*beside})


def of_others() -> Refused:
    """The error for what OF_OTHERS finds."""
    return Refused(
        "the schema seedbed_queue, or something in it, belongs to a role that you are not a member of",
        setting="source.url",
        hint="connect as its owner, or have it and all in it handed over",
    )


def not_watched() -> ConfigError:
    """The error of a pipeline without a subscription."""
    return ConfigError("no changes are being queued for this pipeline", setting="source.changes", hint=_AGAIN)


_AGAIN = "run `seedbed watch` on the pipeline file"
OF_OTHERS = """
SELECT EXISTS (SELECT FROM (
    SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'seedbed_queue'
    UNION SELECT proowner FROM pg_catalog.pg_proc
        WHERE pronamespace = 'seedbed_queue'::regnamespace AND proname NOT LIKE 'capture%'
    UNION SELECT relowner FROM pg_catalog.pg_class WHERE relnamespace = 'seedbed_queue'::regnamespace
) AS o(owner) JOIN pg_catalog.pg_roles r ON r.oid = o.owner
CROSS JOIN (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) AS me
WHERE NOT r.rolsuper AND (me.rolsuper OR NOT pg_catalog.pg_has_role(r.oid, 'USAGE')))"""
_NAMED = """
SELECT a.attname::text FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE r.ev_class = 'pg_temp.seedbed_condition'::regclass AND d.refobjid = %s::regclass AND d.refobjsubid > 0"""


def _key_names(relation: Relation) -> list[str]:
    return [key.column.name for key in relation.key]


class QueueFeed:
    """As protocols.Feed. `columns` are those that the pipeline needs: a subscription that does not watch them all
    raises ConfigError, and so does one that is not there."""

    def __init__(self, queue: Queue, name: str, relation: Relation, columns: Sequence[str], where: str | None) -> None:
        self._queue = queue
        self._kinds = [key.column.kind for key in relation.key]
        self._taker = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex[:12]}"
        self._id, created = self._subscription(name, relation, [*columns, *queue.named_by(relation, where, columns)])
        condition_hash = hashlib.sha256((where or "").encode()).hexdigest()[:12]
        self.marker = f"queue {self._id} {created} {condition_hash}"
        self.upto = 0
        self._held: list[str] = []
        """Worked off, but some of them held by others (a neighbour's look at them, a writer) just then."""
        self._alive = time.monotonic()
        self._closed = threading.Event()
        self._renewing: threading.Thread | None = None
        self._listening: psycopg.Connection[TupleRow] | None = None

    def _subscription(self, name: str, relation: Relation, columns: Sequence[str]) -> tuple[int, str]:
        found = self._queue.stands() and self._queue.rows(
            "SELECT id, relation = %s::regclass, key_columns, watched_columns, created_at::text"
            " FROM seedbed_queue.subscription WHERE name = %s",
            relation.source.as_string(None),
            name,
        )
        if not found:
            raise not_watched()
        number, same, key, watched, created = found[0]
        if not same or key != _key_names(relation):
            raise ConfigError("what is watched is another table or key", setting="source.table", hint=_AGAIN)
        missing = sorted({*columns} - {*watched, *key})
        if missing:
            raise ConfigError(
                f"changes of {', '.join(missing)} are not watched", setting="source.changes", hint=f"{_AGAIN} once more"
            )
        return number, created

    # --- a pass -------------------------------------------------------------------------------------

    def all_rows(self) -> bool:
        self.upto = self._newest()
        statement = "SELECT seedbed_queue.take_all_rows(%s::bigint, %s::text, %s::interval)"
        return self._queue.rows(statement, self._id, self._taker, f"{LEASE} s")[0][0] is True

    def pages(self, selection: Selection, read: Read) -> Iterator[Page]:
        self.upto = self._newest()
        after = ""
        while True:
            taken = self._queue.rows(
                "SELECT key FROM seedbed_queue.take"
                "(%s::bigint, %s::text, %s::text, %s::bigint, %s::integer, %s::interval)",
                *(self._id, self._taker, after, self.upto, min(_TAKEN, selection.page_rows), f"{LEASE} s"),
            )
            if not taken:
                return
            self._keep_alive()
            keys = sorted(key for (key,) in taken)
            after = max(keys, key=str.encode)
            yield from self._rows_of(keys, selection, read)

    def _rows_of(self, keys: list[str], selection: Selection, read: Read) -> Iterator[Page]:
        """Their rows; those that have none are deleted."""
        missing, last = set(keys), None
        for page in read(replace(selection, keys=keys)):
            if last is not None:
                yield last
            missing -= {*page.keys, *page.failed, *(key for key, _ in page.deleted)}
            last = page
        assert last is not None
        gone = [(key, position(key_parts(key), self._kinds)) for key in sorted(missing)]
        yield replace(last, deleted=[*last.deleted, *gone])

    def finish(self, keys: Sequence[str]) -> None:
        if keys and self._finished(keys) < len(keys):
            self._held.extend(keys)

    def _finished(self, keys: Sequence[str]) -> int:
        found = self._queue.rows(
            "SELECT seedbed_queue.finish(%s::bigint, %s::text, %s::text[], %s::bigint)",
            *(self._id, self._taker, list(keys), self.upto),
        )
        return int(found[0][0])

    def finish_all_rows(self) -> None:
        self._queue.rows("SELECT seedbed_queue.finish_all_rows(%s::bigint, %s::bigint)", self._id, self.upto)

    def put(self, keys: Sequence[str]) -> None:
        if keys:
            self._queue.rows("SELECT seedbed_queue.put(%s::bigint, %s::text[])", self._id, list(keys))

    def release(self) -> None:
        held, self._held = self._held, []
        with suppress(SeedbedError):  # what cannot be given back comes back when its lease runs out
            if held:
                self._finished(held)
            statement = "SELECT seedbed_queue.release(%s::bigint, %s::text)"
            for _ in range(_TRIES):
                if not self._queue.rows(statement, self._id, self._taker)[0][0]:
                    break
                time.sleep(0.02)

    def _newest(self) -> int:
        return int(self._queue.rows("SELECT seedbed_queue.newest()")[0][0])

    # --- leases -------------------------------------------------------------------------------------

    def check(self, keys: Sequence[str]) -> None:
        statement = "SELECT seedbed_queue.held(%s::bigint, %s::text, %s::text[])"
        held = self._queue.rows(statement, self._id, self._taker, list(keys))[0][0]
        if held < len(set(keys)):
            raise Transient(
                f"{len(set(keys)) - held} leases of changed rows ran out before they were written: others may have "
                "taken them",
                setting="source.url",
                hint="run again: nothing is lost, and what was embedded is in the cache",
            )

    def _keep_alive(self) -> None:
        if self._renewing is None:
            self._alive = time.monotonic()
            self._renewing = threading.Thread(target=self._renew, name="seedbed-leases", daemon=True)
            self._renewing.start()

    def _renew(self) -> None:
        while not self._closed.wait(_RENEWED):
            began = time.monotonic()
            if began - self._alive > LEASE:
                return  # they have run out
            with suppress(SeedbedError):
                self._queue.rows(
                    "SELECT seedbed_queue.renew(%s::bigint, %s::text, %s::interval)",
                    *(self._id, self._taker, f"{LEASE} s"),
                )
                self._alive = began

    # --- between passes -----------------------------------------------------------------------------

    def waiting(self) -> Waiting:
        """Raises Transient where this subscription is no more, as the table was watched anew."""
        if not self._queue.rows("SELECT 1 FROM seedbed_queue.subscription WHERE id = %s", self._id):
            raise Transient("the table was watched anew, or not any more", setting="source.changes", hint="try again")
        found = self._queue.rows(
            "SELECT changes, taken, stuck, coalesce(extract(epoch FROM oldest), 0)::float8"
            " FROM seedbed_queue.waiting(%s::bigint)",
            self._id,
        )
        return Waiting(*found[0])

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """By NOTIFY, which comes where the queue was empty before; and by the clock, which is always enough."""
        end = time.monotonic() + seconds
        while not stop.is_set() and (left := end - time.monotonic()) > 0:
            try:
                if self._listening is None or self._listening.closed:
                    self._listening = self._queue.connect()
                    self._listening.execute(f"LISTEN {CHANNEL}".encode())
                    if self.waiting().free:
                        return
                for notice in self._listening.notifies(timeout=min(left, 0.25), stop_after=1):
                    if notice.payload == str(self._id):
                        return
            except (psycopg.Error, Transient):
                stop.wait(min(left, 1.0))
                return

    def close(self) -> None:
        self._closed.set()
        if self._renewing is not None:
            self._renewing.join()
        if self._listening is not None:
            self._listening.close()
        if self.upto:
            self.release()


if TYPE_CHECKING:
    _feed: type[Feed] = QueueFeed
