"""The ledger's tables and rules, in the SQL that SQLite and Postgres share.

Three levels. *row*: a source row of a pipeline and why it last failed; one that never did has nothing to say
and no entry. *target*: what stands at one destination (sink and version) for a row: content hash, payload
hash, points. *run*: who, when, counts, provenance. A row is done for a destination when that target's hashes
equal the source's; an unchanged row costs no write.

*intent*: before a store is written, the keys and point counts of that write are committed here, and
removed with the targets' commit. What a crash leaves behind is folded into the targets with unknown
hashes by `recover`, so that the next run rewrites or removes exactly those rows, even where the
source has changed in between.

A run may be shared by many processes, shard by shard (`shards`). Then each write is fenced: it is committed only while
the shard's lease is still this process's.
"""

from __future__ import annotations

import abc
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from seedbed.errors import AlreadyRunning, LeaseLost, Refused
from seedbed.identity import KeyRange, Space
from seedbed.protocols import Usage

if TYPE_CHECKING:
    from seedbed.embedders.account import Keeper

SCHEMA_VERSION = 4

# {serial}, {bytes}: the two words in which the dialects differ.
TABLES = """
create table {p}ledger_version (version integer not null);
create table {p}pipeline (id {serial}, name text not null unique, recipe text, watermark text);
create table {p}destination (id {serial}, pipeline_id integer not null, sink text not null, version text not null,
  space text not null, unique (pipeline_id, sink, version));
create table {p}run (id {serial}, pipeline_id integer not null, who text not null, started text not null,
  finished text, outcome text, counts text, provenance text);
create table {p}failed_row (pipeline_id integer not null, position {bytes} not null, key text not null,
  content {bytes}, error text not null, primary key (pipeline_id, position)){rowless};
create table {p}target (destination_id integer not null, position {bytes} not null, key text not null,
  content {bytes} not null, payload {bytes} not null, points integer not null, run_id integer not null,
  primary key (destination_id, position)){rowless};
create table {p}intent (id {serial}, destination_id integer not null, entries text not null)
"""


UPGRADES = {
    2: """
create table {p}shared_state (name text primary key, state text not null);
create table {p}usage_of_model (model text primary key, calls integer not null, estimated {real} not null,
  tokens integer not null)
""",
    3: """
alter table {p}intent add column run_id integer not null default 0;
create index target_in_doubt on {p}target (destination_id) where content = {unknown}
""",
    4: """
alter table {p}run add column parent integer;
alter table {p}run add column plan text;
create table {p}shard (run_id integer not null, number integer not null, after_position {bytes}, upto_position {bytes},
  holder integer not null default 0, lease_until {real} not null default 0, done integer not null default 0,
  primary key (run_id, number));
create table {p}gone (run_id integer not null, shard integer not null, destination_id integer not null,
  position {bytes} not null, key text not null, points integer not null,
  primary key (run_id, destination_id, position))
""",
}
"""What a version adds to the one before it. 2: accounts' limits and budgets; how far estimates of tokens were off.
3: whose an intent is, as several runs may share a pipeline; what is in doubt is found without reading all.
4: runs that processes share: their shards, the attempts at these (runs with a parent), and what is gone."""

UNKNOWN = bytes(32)
"""No SHA-256 of anything: the hash of what a crash left in doubt."""


_REPLACE = "content = excluded.content, points = excluded.points"
_DOUBT = (
    "content = excluded.content, "
    "points = case when target.points > excluded.points then target.points else excluded.points end"
)
ON_TARGET = "on conflict (destination_id, position) do update set payload = excluded.payload, run_id = excluded.run_id,"


class Destination(NamedTuple):
    """One sink of one pipeline at one version."""

    id: int
    sink: str
    version: str


class Entry(NamedTuple):
    """One row as it now stands at a destination; hashes of 32 bytes, UNKNOWN where they are to be rewritten."""

    position: bytes
    key: str
    content: bytes
    payload: bytes
    points: int


class RowFailure(NamedTuple):
    position: bytes
    key: str
    content: bytes | None
    error: str


@dataclass(slots=True)
class Standing:
    """What stands in a stretch of keys, as parallel lists in order of position; content UNKNOWN: in doubt."""

    positions: list[bytes] = field(default_factory=list)
    content: list[bytes] = field(default_factory=list)
    payload: list[bytes] = field(default_factory=list)
    points: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class State:
    recipe: str | None
    watermark: str | None


class Held(NamedTuple):
    """A shard of a shared run, and the attempt that has it. `token` is the attempt's own number in the table `run`: it
    fences the shard off, since numbers grow and a later attempt's is the one that stands there."""

    run: int
    number: int
    token: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    id: int
    who: str
    started: str
    finished: str | None
    outcome: str | None
    counts: dict[str, Any]
    provenance: dict[str, str]


class Ledger(abc.ABC):
    """One connection, shared by the run's threads behind a lock. Dialects fill in the abstract methods."""

    def __init__(self) -> None:
        self._guard = threading.RLock()
        self._version = SCHEMA_VERSION
        self._run = 0
        self.held: Held | None = None
        """What commits are fenced by; None in a run of one process, which a lock keeps alone."""

    _unknown: str
    """The literal of UNKNOWN."""
    _clock: str
    """The seconds now, since 1970, by the database's own clock: workers' may differ."""
    shared: bool
    """Whether several machines may work with it."""

    # --- what a dialect gives -----------------------------------------------------------------------

    @abc.abstractmethod
    def _query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Runs one statement with `?` placeholders; its rows, or nothing."""

    @abc.abstractmethod
    def _many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Runs one statement for many rows, in one transaction."""

    @abc.abstractmethod
    def _among(self, column: str, values: Sequence[bytes]) -> tuple[str, list[object]]:
        """A condition that the column is one of the values, and its parameters."""

    @abc.abstractmethod
    def _transaction(self) -> AbstractContextManager[None]: ...

    @abc.abstractmethod
    def lock(self, pipeline: str, *, shared: bool = False) -> None:
        """One run of a pipeline at a time, or several that share it (where the dialect knows such) and no other;
        released by `unlock`, `close` or death. Raises AlreadyRunning."""

    @abc.abstractmethod
    def unlock(self, *, run: bool = True) -> None:
        """Nothing where nothing is locked. `run`: also what says that this process's run lives."""

    def _claim(self, run_id: int) -> None:
        """Others that share the pipeline see from now on that this run lives."""
        self._run = run_id

    def _lives(self, run_id: int) -> bool:
        """Whether another process is at work on this run; never, where runs share nothing."""
        return False

    @abc.abstractmethod
    def close(self) -> None: ...

    def keeper(self) -> Keeper | None:
        """What keeps limits and budgets for all that use this ledger; None where only one process does."""
        return None

    # --- pipelines and runs -------------------------------------------------------------------------

    def pipeline_id(self, name: str) -> int | None:
        found = self._query("select id from pipeline where name = ?", [name])
        return int(found[0][0]) if found else None

    def register(self, name: str) -> int:
        if (known := self.pipeline_id(name)) is not None:
            return known
        self._query("insert into pipeline (name) values (?) on conflict do nothing", [name])
        return int(self._query("select id from pipeline where name = ?", [name])[0][0])

    def state(self, pipeline_id: int | None) -> State:
        found = self._query("select recipe, watermark from pipeline where id = ?", [pipeline_id])
        return State(*found[0]) if found else State(None, None)

    def set_state(self, pipeline_id: int, state: State) -> None:
        if self.state(pipeline_id) != state:
            self._query(
                "update pipeline set recipe = ?, watermark = ? where id = ?",
                [state.recipe, state.watermark, pipeline_id],
            )

    def begin(self, pipeline_id: int, who: str, *, alone: bool = True) -> int:
        """Ends what died before. `alone`: also shared runs that nobody works on; raises AlreadyRunning where somebody
        does."""
        with self._transaction():
            self._end_dead(pipeline_id)
            if alone:
                self.end_shared(pipeline_id)
            else:
                self._refuse_beside_all_rows(pipeline_id)
            self._claim(self.add_run(pipeline_id, who))
        return self._run

    def add_run(self, pipeline_id: int, who: str, parent: int | None = None, plan: str | None = None) -> int:
        made = self._query(
            "insert into run (pipeline_id, who, started, parent, plan) values (?, ?, ?, ?, ?) returning id",
            [pipeline_id, who, now(), parent, plan],
        )
        return int(made[0][0])

    def _end_dead(self, pipeline_id: int) -> None:
        """Runs and attempts whose process is no more."""
        unfinished = "select id from run where pipeline_id = ? and finished is null and plan is null"
        for (found,) in self._query(unfinished, [pipeline_id]):
            if not self._lives(found):
                self._query("update run set finished = ?, outcome = 'died' where id = ?", [now(), found])

    def _refuse_beside_all_rows(self, pipeline_id: int) -> None:
        """A pass over what is queued writes newer rows than a shared run that has read them before. Raises
        AlreadyRunning."""
        open_runs = "select who, plan from run where pipeline_id = ? and finished is null and plan is not null"
        for who, plan in self._query(open_runs, [pipeline_id]):
            if not json.loads(plan)["queue"]:
                raise AlreadyRunning(f"{who} reads all rows", setting="ledger.url", hint="run again when it has ended")

    def end_shared(self, pipeline_id: int) -> None:
        """Shared runs that were left unfinished end: their attempts commit no more. Raises AlreadyRunning where an
        attempt's lease has not run out and its process lives."""
        open_runs = "select id, who from run where pipeline_id = ? and finished is null and plan is not null"
        for run, who in self._query(open_runs, [pipeline_id]):
            leased = "select number, holder from shard where run_id = ? and done = 0 and lease_until > "
            for number, holder in self._query(leased + self._clock, [run]):
                if self._lives(holder):
                    raise AlreadyRunning(
                        f"shard {number} of {who} is being worked on",
                        setting="ledger.url",
                        hint="wait for that run to end, or end it; what dies holds nothing",
                    )
            self._query("update run set finished = ?, outcome = 'given up' where id = ?", [now(), run])
            self._query("update shard set holder = 0 where run_id = ?", [run])
            self._query("delete from gone where run_id = ?", [run])

    def end(self, run_id: int, outcome: str, counts: dict[str, Any], provenance: dict[str, str]) -> None:
        self._query(
            "update run set finished = ?, outcome = ?, counts = ?, provenance = ? where id = ?",
            [now(), outcome, json.dumps(counts), json.dumps(provenance), run_id],
        )

    def runs(self, pipeline_id: int | None, last: int = 5) -> list[RunRecord]:
        """The last ones, without the attempts at a shared run's shards."""
        whole = "and parent is null " if self._version >= 4 else ""
        found = self._query(
            "select id, who, started, finished, outcome, counts, provenance from run where pipeline_id = ? "
            f"{whole}order by id desc limit ?",
            [pipeline_id, last],
        )
        return [
            RunRecord(run, who, started, finished, outcome, json.loads(counts or "{}"), json.loads(provenance or "{}"))
            for run, who, started, finished, outcome, counts, provenance in found
        ]

    def running(self, pipeline: str) -> str:
        """Who holds the pipeline, in words; for the message of AlreadyRunning."""
        found = self._query(
            "select run.who, run.started from run join pipeline on pipeline.id = run.pipeline_id "
            "where pipeline.name = ? and run.finished is null order by run.id desc limit 1",
            [pipeline],
        )
        return f"{found[0][0]} since {found[0][1]}" if found else "another process"

    # --- destinations -------------------------------------------------------------------------------

    def destination(self, pipeline_id: int | None, sink: str) -> Destination | None:
        """The version that the last run wrote to; None where none ever did."""
        found = self._query(
            "select id, sink, version from destination where pipeline_id = ? and sink = ? order by id desc limit 1",
            [pipeline_id, sink],
        )
        return Destination(*found[0]) if found else None

    def add_destination(self, pipeline_id: int, sink: str, version: str, space: Space) -> Destination:
        found = "select id, sink, version from destination where pipeline_id = ? and sink = ? and version = ?"
        which = [pipeline_id, sink, version]
        if not (rows := self._query(found, which)):
            self._query(
                "insert into destination (pipeline_id, sink, version, space) values (?, ?, ?, ?) "
                "on conflict do nothing",
                [*which, space.to_json()],
            )
            rows = self._query(found, which)
        return Destination(*rows[0])

    def count(self, destination: Destination | None, most: int = -1) -> int:
        """Rows that stand there; not counted any further than `most`."""
        if destination is None:
            return 0
        limit = f" limit {most}" if most >= 0 else ""
        counted = f"select count(*) from (select 1 from target where destination_id = ?{limit}) as counted"
        return int(self._query(counted, [destination.id])[0][0])

    def touched(self, destination: Destination) -> bool:
        """Whether anything was ever written, or begun to be written, there."""
        return any(
            self._query(f"select 1 from {table} where destination_id = ? limit 1", [destination.id])
            for table in ("target", "intent")
        )

    # --- targets ------------------------------------------------------------------------------------

    def standing(self, destination: Destination | None, stretch: KeyRange) -> Standing:
        bounds, parameters = _bounds(stretch)
        return self._standing(destination.id, bounds, parameters) if destination else Standing()

    def standing_of(self, destination: Destination | None, positions: Sequence[bytes]) -> Standing:
        if not positions or destination is None:
            return Standing()
        return self._standing(destination.id, *self._among("position", positions))

    def _standing(self, destination_id: int, condition: str, parameters: list[object]) -> Standing:
        rows = self._query(
            f"select position, content, payload, points from target where destination_id = ? "
            f"and {condition} order by position",
            [destination_id, *parameters],
        )
        return Standing(*map(list, zip(*rows, strict=True))) if rows else Standing()

    def keys(self, destination: Destination, positions: Sequence[bytes]) -> dict[bytes, str]:
        """The keys that stand at positions."""
        condition, parameters = self._among("position", positions)
        rows = self._query(
            f"select position, key from target where destination_id = ? and {condition}", [destination.id, *parameters]
        )
        return dict(rows)

    def unknown(self, destination: Destination | None) -> list[Entry]:
        """The rows that a crash left in doubt."""
        if destination is None:
            return []
        rows = self._query(
            "select position, key, content, payload, points from target where destination_id = ? "
            f"and content = {self._unknown}",  # a literal, as the index of these rows has it
            [destination.id],
        )
        return [Entry(*row) for row in rows]

    def intend(self, destination: Destination, entries: Sequence[Entry]) -> int:
        """Commits that these rows are about to be written or removed; `points` the most that may stand there."""
        return int(
            self._query(
                "insert into intent (destination_id, run_id, entries) values (?, ?, ?) returning id",
                [destination.id, self._run, json.dumps([(e.position.hex(), e.key, e.points) for e in entries])],
            )[0][0]
        )

    def commit(self, destination: Destination, run_id: int, intent: int | None, entries: Sequence[Entry]) -> None:
        """The entries now stand there; the intent is done. One transaction. Raises LeaseLost."""
        with self._transaction():
            if fenced := self._fenced():
                self._put_targets(destination, run_id, entries, _REPLACE)
            else:
                # Written after another took over: it may have fallen on what that one wrote.
                doubtful = [entry._replace(content=UNKNOWN, payload=UNKNOWN) for entry in entries]
                self._put_targets(destination, 0, doubtful, _DOUBT)
            if intent is not None:
                self._query("delete from intent where id = ?", [intent])
        if not fenced:
            raise lease_lost()

    def forget(self, destination: Destination, intent: int | None, positions: Sequence[bytes]) -> None:
        """The rows no longer stand there; the intent is done. One transaction."""
        condition, parameters = self._among("position", positions)
        with self._transaction():
            if not self._fenced():
                raise lease_lost()  # the intent stays: the rows are in doubt
            self._query(f"delete from target where destination_id = ? and {condition}", [destination.id, *parameters])
            if intent is not None:
                self._query("delete from intent where id = ?", [intent])

    def _fenced(self) -> bool:
        """Whether this process may still commit: none has taken its shard over, nor can until the transaction ends."""
        if self.held is None:
            return True
        mine = "update shard set holder = holder where run_id = ? and number = ? and holder = ? returning 1"
        return bool(self._query(mine, self.held))

    def reset(self, destination: Destination) -> None:
        """Nothing stands there any more (the collection was dropped or emptied by others)."""
        with self._transaction():
            self._query("delete from target where destination_id = ?", [destination.id])
            self._query("delete from intent where destination_id = ?", [destination.id])

    def recover(self, destination: Destination) -> int:
        """Folds what a crash left in flight into the targets, in doubt; how many intents there were."""
        found = self._query("select id, run_id from intent where destination_id = ? order by id", [destination.id])
        left = [number for number, run_id in found if run_id == self._run or not self._lives(run_id)]
        return sum(self._recover(number) for number in left)

    def recover_run(self, run_id: int) -> None:
        """The same of one run or attempt, whether it lives or not."""
        for (number,) in self._query("select id from intent where run_id = ? order by id", [run_id]):
            self._recover(number)

    def _recover(self, number: int) -> int:
        with self._transaction():
            for place, entries in self._query(
                "delete from intent where id = ? returning destination_id, entries", [number]
            ):
                read = json.loads(entries)
                doubtful = [Entry(bytes.fromhex(p), key, UNKNOWN, UNKNOWN, points) for p, key, points in read]
                self._put_targets(Destination(place, "", ""), 0, doubtful, _DOUBT)
                return 1
        return 0

    def _put_targets(self, destination: Destination, run_id: int, entries: Sequence[Entry], update: str) -> None:
        self._many(
            "insert into target (destination_id, run_id, position, key, content, payload, points) "
            f"values (?, ?, ?, ?, ?, ?, ?) {ON_TARGET} {update}",
            ((destination.id, run_id, *entry) for entry in entries),
        )

    # --- rows ---------------------------------------------------------------------------------------

    def record_failures(self, pipeline_id: int, failures: Sequence[RowFailure]) -> int:
        """Rows that the model or the store refused; how many had not failed with the same content before."""
        if not failures:
            return 0
        condition, parameters = self._among("position", [f.position for f in failures])
        with self._transaction():
            known = dict(
                self._query(
                    f"select position, content from failed_row where pipeline_id = ? and {condition}",
                    [pipeline_id, *parameters],
                )
            )
            self._many(
                "insert into failed_row (pipeline_id, position, key, content, error) values (?, ?, ?, ?, ?) "
                "on conflict (pipeline_id, position) do update set content = excluded.content, error = excluded.error",
                ((pipeline_id, *failure) for failure in failures),
            )
        return sum(f.position not in known or known[f.position] != f.content for f in failures)

    def forget_failures(self, pipeline_id: int, positions: Sequence[bytes]) -> None:
        """The rows no longer fail, or are gone."""
        if positions:
            condition, parameters = self._among("position", positions)
            self._query(f"delete from failed_row where pipeline_id = ? and {condition}", [pipeline_id, *parameters])

    def failures(self, pipeline_id: int | None) -> list[RowFailure]:
        rows = self._query(
            "select position, key, content, error from failed_row where pipeline_id = ? order by position",
            [pipeline_id],
        )
        return [RowFailure(*row) for row in rows]

    # --- what embedding cost ------------------------------------------------------------------------

    def add_usage(self, model: str, usage: Usage) -> None:
        """Of an embedder that estimates tokens; nothing of one that counts."""
        if usage.calls and usage.estimated:
            self._query(
                "insert into usage_of_model as u (model, calls, estimated, tokens) values (?, ?, ?, ?) "
                "on conflict (model) do update set calls = u.calls + excluded.calls, "
                "estimated = u.estimated + excluded.estimated, tokens = u.tokens + excluded.tokens",
                [model, usage.calls, usage.estimated, usage.tokens],
            )

    def usage(self, model: str) -> Usage:
        """All that was recorded of a model."""
        if self._version < 2:
            return Usage()
        found = self._query("select calls, tokens, estimated from usage_of_model where model = ?", [model])
        return Usage(calls=found[0][0], tokens=found[0][1], estimated=found[0][2]) if found else Usage()

    # --- schema -------------------------------------------------------------------------------------

    def _upgrade(self, words: Mapping[str, str], prefix: str = "") -> None:
        """Brings the tables up to SCHEMA_VERSION, within the caller's transaction."""
        found = int(self._query(f"select version from {prefix}ledger_version")[0][0])
        self._check_version(found)
        for version in range(found + 1, SCHEMA_VERSION + 1):
            for statement in UPGRADES[version].format(**words).split(";"):
                self._query(statement)
        if found < SCHEMA_VERSION:
            self._query(f"update {prefix}ledger_version set version = ?", [SCHEMA_VERSION])
        self._version = SCHEMA_VERSION

    def _check_version(self, found: int) -> None:
        if found > SCHEMA_VERSION:
            raise Refused(
                f"the ledger is of version {found}, newer than this program's {SCHEMA_VERSION}",
                setting="ledger.url",
                hint="upgrade seedbed, or name another ledger",
            )


def _bounds(stretch: KeyRange) -> tuple[str, list[object]]:
    conditions, parameters = ["1 = 1"], []
    for operator, bound in ((">", stretch.after), ("<=", stretch.upto)):
        if bound is not None:
            conditions.append(f"position {operator} ?")
            parameters.append(bound)
    return " and ".join(conditions), list(parameters)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def lease_lost() -> LeaseLost:
    """The error of an attempt that another one has taken over."""
    return LeaseLost(
        "another worker has taken this shard over",
        setting="ledger.url",
        hint="nothing is lost: that worker writes these rows, from the cache where they were embedded here",
    )
