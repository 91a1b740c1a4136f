"""Runs that many processes share: shards, leases with fencing tokens, and the rows that are gone until all is seen.

A shard is leased by an *attempt*: a run of its own whose parent is the shared run, and whose number is the fencing
token. A process that lives holds its attempt's lock, so a dead one's shard is free at once; one that is frozen keeps it
until the lease runs out, and commits no more once another has taken it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from seedbed.diff import Gone
from seedbed.errors import AlreadyRunning, Refused
from seedbed.identity import KeyRange
from seedbed.ledger.base import Destination, Held, Ledger, lease_lost, now

LEASE = 180.0
"""Seconds after which an attempt that says nothing more has lost its shard."""
KEPT = 20
"""Shared runs whose shards and attempts are kept."""


class SharedRun(NamedTuple):
    id: int
    pipeline_id: int
    started: str
    finished: str | None
    plan: dict[str, Any]


class ShardRecord(NamedTuple):
    """`holder`: the attempt that has it, 0 for none; `left`: seconds for which it has it still."""

    number: int
    holder: int
    done: bool
    left: float


def not_done(label: str) -> AlreadyRunning:
    return AlreadyRunning(f"{label} is not done yet", setting="ledger.url", hint="run again later")


def followed(run: int) -> Refused:
    return Refused(
        f"run {run} has ended, and another came after it",
        setting="ledger.url",
        hint="plan anew: in Airflow, clear the plan task with all that is downstream",
    )


class Shards:
    """The tables of shared runs, in any ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._query = ledger._query

    # --- runs ---------------------------------------------------------------------------------------

    def open(
        self, pipeline_id: int, who: str, plan: dict[str, Any], ranges: Sequence[KeyRange | None], left: Collection[str]
    ) -> int:
        """A new shared run with a shard for each range (None: not by key) and a last one that finishes it. Unfinished
        ones of the names `left` are given up. Raises AlreadyRunning where there is another, or somebody at work."""
        ledger = self._ledger
        with ledger._transaction():
            # Two that open one at a time: the second waits here.
            self._query("update pipeline set name = name where id = ?", [pipeline_id])
            ledger._end_dead(pipeline_id)
            whole = "finished is null and plan is null and parent is null"
            if running := self._query(f"select who from run where pipeline_id = ? and {whole}", [pipeline_id]):
                raise AlreadyRunning(
                    f"this pipeline is being run by {running[0][0]}", setting="ledger.url", hint="run again later"
                )
            for other in self.unfinished(pipeline_id):
                if other not in left:
                    raise not_done(other)
            ledger.end_shared(pipeline_id)
            run = ledger.add_run(pipeline_id, who, plan=json.dumps(plan))
            shards = [*ranges, None]
            ledger._many(
                "insert into shard (run_id, number, after_position, upto_position) values (?, ?, ?, ?)",
                [(run, number, *((r.after, r.upto) if r else (None, None))) for number, r in enumerate(shards)],
            )
            self._prune(pipeline_id)
        return run

    def _prune(self, pipeline_id: int) -> None:
        old = (
            "(select id from run where pipeline_id = ? and plan is not null and id not in "
            "(select id from run where pipeline_id = ? and plan is not null order by id desc limit ?))"
        )
        which = [pipeline_id, pipeline_id, KEPT]
        for table, column in (("shard", "run_id"), ("gone", "run_id"), ("run", "parent")):
            self._query(f"delete from {table} where {column} in {old}", which)

    def find(self, run: int) -> SharedRun:
        """Raises Refused where there is none of that number."""
        found = self._query("select id, pipeline_id, started, finished, plan from run where id = ?", [run])
        if not found or found[0][4] is None:
            raise Refused(
                f"the ledger knows no shared run {run}",
                setting="ledger.url",
                hint="plan again: the ledger is another one, or was made anew since",
            )
        number, pipeline_id, started, finished, plan = found[0]
        return SharedRun(number, pipeline_id, started, finished, json.loads(plan))

    def resumable(self, pipeline_id: int, who: str) -> SharedRun | None:
        """The unfinished run that was opened under that name, and whose opener lived to check what may stop it."""
        found = self._query(
            "select id from run where pipeline_id = ? and who = ? and plan is not null and finished is null",
            [pipeline_id, who],
        )
        run = self.find(found[0][0]) if found else None
        return run if run is not None and run.plan.get("checked") else None

    def checked(self, run: int, plan: dict[str, Any]) -> None:
        """From now on its shards may be worked on."""
        self._query("update run set plan = ? where id = ?", [json.dumps({**plan, "checked": True}), run])

    def unfinished(self, pipeline_id: int) -> list[str]:
        """The names of shared runs that were opened and have not ended."""
        open_runs = "select who from run where pipeline_id = ? and plan is not null and finished is null"
        return [who for (who,) in self._query(open_runs, [pipeline_id])]

    def reopen(self, run: SharedRun) -> None:
        """For a shard that is to be done once more. Raises Refused where a later run has come."""
        with self._ledger._transaction():
            self._query("update pipeline set name = name where id = ?", [run.pipeline_id])
            later = "select 1 from run where pipeline_id = ? and id > ? and parent is null"
            if self._query(later, [run.pipeline_id, run.id]):
                raise followed(run.id)
            self._query("update run set finished = null, outcome = null where id = ?", [run.id])

    def records(self, run: int) -> list[ShardRecord]:
        left = f"lease_until - {self._ledger._clock}"
        found = self._query(f"select number, holder, done, {left} from shard where run_id = ? order by number", [run])
        return [ShardRecord(number, holder, bool(done), left) for number, holder, done, left in found]

    def range_of(self, run: int, number: int) -> KeyRange | None:
        """All keys, where a shard is not by key; None where there is none of that number."""
        found = self._query(
            "select after_position, upto_position from shard where run_id = ? and number = ?", [run, number]
        )
        return KeyRange(*found[0]) if found else None

    # --- leases -------------------------------------------------------------------------------------

    def take(self, run: SharedRun, number: int, who: str) -> Held:
        """Leases a shard that is free, or whose holder is dead or out of time; what that one had in flight is in doubt
        from then on. Raises AlreadyRunning for one that is held."""
        ledger = self._ledger
        with ledger._transaction():
            lock = "update shard set holder = holder where run_id = ? and number = ? returning holder"
            found = self._query(lock, [run.id, number])
            open_still = "select 1 from run where id = ? and finished is null"
            if not found or not self._query(open_still, [run.id]):
                raise followed(run.id)
            before = int(found[0][0])
            left = self.records(run.id)[number].left
            if before and left > 0 and ledger._lives(before):
                raise AlreadyRunning(
                    f"shard {number} is being worked on by {self._who(before)}, for {left:.0f} s more at least",
                    setting="ledger.url",
                    hint="run again later; what dies holds nothing",
                )
            token = ledger.add_run(run.pipeline_id, who, parent=run.id)
            ledger._claim(token)
            leased = f"holder = ?, done = 0, lease_until = {ledger._clock} + ?"
            self._query(f"update shard set {leased} where run_id = ? and number = ?", [token, LEASE, run.id, number])
            if before:
                ended = "update run set finished = ?, outcome = 'taken over' where id = ? and finished is null"
                self._query(ended, [now(), before])
                ledger.recover_run(before)
        return Held(run.id, number, token)

    def _who(self, attempt: int) -> str:
        found = self._query("select who from run where id = ?", [attempt])
        return str(found[0][0]) if found else "another process"

    def renew(self, held: Held) -> bool:
        """Whether it is still held; for LEASE seconds more."""
        return bool(
            self._query(
                f"update shard set lease_until = {self._ledger._clock} + ? "
                "where run_id = ? and number = ? and holder = ? returning 1",
                [LEASE, *held],
            )
        )

    def note(self, held: Held, counts: dict[str, Any]) -> None:
        """What the attempt has done so far."""
        self._query("update run set counts = ? where id = ?", [json.dumps(counts), held.token])

    def release(self, held: Held) -> None:
        """Others may have it at once."""
        self._query("update shard set lease_until = 0 where run_id = ? and number = ? and holder = ?", held)

    def complete(self, held: Held, gone: Iterable[tuple[Destination, Iterable[Gone]]]) -> None:
        """The shard is done; these of its rows are gone from the source. Raises LeaseLost."""
        ledger = self._ledger
        with ledger._transaction():
            self._query("delete from gone where run_id = ? and shard = ?", [held.run, held.number])
            for destination, rows in gone:
                ledger._many(
                    "insert into gone (run_id, shard, destination_id, position, key, points) values (?, ?, ?, ?, ?, ?) "
                    "on conflict do nothing",
                    ((held.run, held.number, destination.id, row.position, row.key, row.points) for row in rows),
                )
            mine = "run_id = ? and number = ? and holder = ?"
            if not self._query(f"update shard set done = 1, lease_until = 0 where {mine} returning 1", held):
                raise lease_lost()

    # --- what the attempts did, and what is gone ----------------------------------------------------

    def attempts(self, run: int) -> list[tuple[int, dict[str, Any]]]:
        """Of all shards, in their order: number and counts."""
        found = self._query("select id, counts from run where parent = ? order by id", [run])
        return [(number, json.loads(counts or "{}")) for number, counts in found]

    def provenance(self, run: int) -> dict[str, str]:
        """Of the last attempt that embedded something."""
        found = self._query(
            "select provenance from run where parent = ? and provenance <> '{}' order by id desc limit 1", [run]
        )
        return dict(json.loads(found[0][0])) if found else {}

    def count_gone(self, run: int, destination: Destination) -> int:
        counted = "select count(*) from gone where run_id = ? and destination_id = ?"
        return int(self._query(counted, [run, destination.id])[0][0])

    def gone(self, run: int, destination: Destination, sink: int, size: int) -> Iterator[list[Gone]]:
        """In batches of `size`; what was given out may be forgotten meanwhile."""
        beyond, after = "", list[object]()
        while rows := self._query(
            f"select position, key, points from gone where run_id = ? and destination_id = ? {beyond}"
            "order by position limit ?",
            [run, destination.id, *after, size],
        ):
            beyond, after = "and position > ? ", [rows[-1][0]]
            yield [Gone(sink, position, key, points) for position, key, points in rows]

    def forget_gone(self, run: int, destination: Destination, positions: Sequence[bytes]) -> None:
        condition, parameters = self._ledger._among("position", positions)
        self._query(
            f"delete from gone where run_id = ? and destination_id = ? and {condition}",
            [run, destination.id, *parameters],
        )
