"""Runs that many processes share: every row once, whatever becomes of the processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from seedbed import Pipeline
from seedbed.errors import AlreadyRunning, ConfigError, LeaseLost, Refused, Transient
from seedbed.ledger import Destination, Entry, Ledger, open_ledger
from seedbed.ledger.shards import Shards
from seedbed.retry import Patience
from seedbed.sharing import Shard
from seedbed.sharing.attempt import Attempt
from seedbed.sinks.pgvector import PgvectorSink

ROWS = 400


class Bench:
    """A table, a pipeline over it with a ledger in the same database, and what stands in the store."""

    def __init__(self, url: str, folder: Path, **more: Any) -> None:
        self.url = url
        self.connection = psycopg.connect(url, autocommit=True)
        self.execute("create table item (id int primary key, body text, changed timestamptz default now())")
        self.execute(f"insert into item select n, 'row ' || n from generate_series(1, {ROWS}) n")
        self.declared: dict[str, Any] = {
            "name": "items",
            "source": {"url": url, "table": "item"},
            "content": {"text": "{body}"},
            "embedder": {"url": "hash:16"},
            "sink": [{"url": url, "collection": "vectors"}],
            "ledger": {"url": url},
            "base": str(folder),
            **more,
        }

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline(**self.declared)

    def execute(self, statement: str) -> list[Any]:
        cursor = self.connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    def run(self, label: str = "night", shards: int = 4, **options: Any) -> dict[str, Any]:
        pieces = self.pipeline.begin_run(label=label, shards=shards, **options)
        for piece in reversed(pieces):
            self.pipeline.run_shard(piece)
        return self.pipeline.finish_run(pieces[0]).as_dict()

    def in_step(self) -> None:
        stored = self.execute("select _key, _hash from vectors order by _key")
        assert len(stored) == self.execute("select count(*) from item where body <> ''")[0][0]
        assert self.pipeline.plan().as_dict() | {"tokens": 0} == {
            **dict.fromkeys(("new", "changed", "payload_changed", "deleted", "skipped", "failed", "tokens"), 0),
            "unchanged": len(stored),
            "cost": None,
            "currency": "CNY",
        }


@pytest.fixture
def bench(pg_url: str, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(pg_url, tmp_path)
    yield made
    made.connection.close()


def counts(told: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(told[name] for name in names)


def test_shards_embed_each_row_once_and_their_counts_are_told_together(bench: Bench) -> None:
    told = bench.run()
    assert counts(told, "read", "embedded", "upserted", "deleted", "failed", "shards") == (ROWS, ROWS, ROWS, 0, 0, 4)
    assert told["sinks"] == {"postgresql": {"upserted": ROWS, "deleted": 0, "behind": 0, "error": None}}
    assert told["slowest"] in range(4)
    bench.in_step()


def test_edits_alone_are_embedded_and_deletes_are_carried_out_at_the_end(bench: Bench) -> None:
    bench.run("first")
    bench.execute("update item set body = 'edited ' || id where id % 100 = 0")
    bench.execute("delete from item where id <= 10")
    pieces = bench.pipeline.begin_run(label="second", shards=4)
    for piece in pieces:
        bench.pipeline.run_shard(piece)
    assert bench.execute("select count(*) from vectors") == [(ROWS,)]
    told = bench.pipeline.finish_run(pieces[0]).as_dict()
    assert counts(told, "read", "embedded", "deleted") == (ROWS - 10, 4, 10)
    bench.in_step()


def test_a_shard_that_is_done_again_costs_no_call(bench: Bench) -> None:
    pieces = bench.pipeline.begin_run(label="night", shards=2)
    for piece in [*pieces, *pieces]:
        bench.pipeline.run_shard(piece)
    told = bench.pipeline.finish_run(pieces[0]).as_dict()
    assert counts(told, "read", "embedded", "upserted") == (ROWS, ROWS, ROWS)
    again = bench.pipeline.run_shard(pieces[1])  # cleared after its run has ended
    assert (again.embedded, again.read) == (0, ROWS // 2)
    assert bench.pipeline.finish_run(pieces[0]).as_dict()["embedded"] == ROWS


def test_an_unfinished_run_of_the_same_label_goes_on(bench: Bench) -> None:
    first = bench.pipeline.begin_run(label="night", shards=4)
    bench.pipeline.run_shard(first[0])
    assert bench.pipeline.begin_run(label="night", shards=4) == first
    other = bench.pipeline.begin_run(label="night", shards=4, full=True)
    assert other[0].run > first[0].run


def test_a_later_run_ends_one_that_nobody_works_on(bench: Bench) -> None:
    old = bench.pipeline.begin_run(label="night", shards=4)
    bench.pipeline.run_shard(old[0])
    new = bench.pipeline.begin_run(label="next night", shards=4)
    assert new[0].run > old[0].run
    with pytest.raises(Refused, match="has ended, and another came after it"):
        bench.pipeline.run_shard(old[1])
    bench.pipeline.sync()
    with pytest.raises(Refused, match="another came after it"):
        bench.pipeline.run_shard(new[1])
    bench.in_step()


def test_a_run_whose_scheduler_is_not_done_with_it_is_not_given_up(bench: Bench) -> None:
    old = bench.pipeline.begin_run(label="night", shards=2)
    with pytest.raises(AlreadyRunning, match="night is not done yet"):
        bench.pipeline.begin_run(label="next night", shards=2, lives=lambda label: label == "night")
    bench.pipeline.run_shard(old[0])


def test_a_run_that_is_opened_meanwhile_is_not_given_up(bench: Bench) -> None:
    def asked(label: str) -> bool:
        bench.pipeline.begin_run(label="in between", shards=2)
        return False

    bench.pipeline.begin_run(label="night", shards=2)
    with pytest.raises(AlreadyRunning, match="in between is not done yet"):
        bench.pipeline.begin_run(label="next night", shards=2, lives=asked)


def test_nobody_else_runs_while_a_shard_is_worked_on(bench: Bench) -> None:
    pieces = bench.pipeline.begin_run(label="night", shards=2)
    ledger = open_ledger(bench.url)
    held = Shards(ledger).take(Shards(ledger).find(pieces[0].run), 0, "process 7 on host")
    with pytest.raises(AlreadyRunning, match="shard 0 of night is being worked on"):
        bench.pipeline.sync()
    with pytest.raises(AlreadyRunning, match="shard 0 of night"):
        bench.pipeline.begin_run(label="next night", shards=2)
    Shards(ledger).release(held)
    ledger.close()
    assert bench.pipeline.sync().upserted == ROWS


def test_a_held_shard_is_not_taken_and_a_dead_workers_is_at_once(bench: Bench) -> None:
    pieces = bench.pipeline.begin_run(label="night", shards=2)
    ledger, other = open_ledger(bench.url), open_ledger(bench.url)
    Shards(ledger).take(Shards(ledger).find(pieces[0].run), 0, "process 7 on host")
    with pytest.raises(AlreadyRunning, match="process 7 on host"):
        Shards(other).take(Shards(other).find(pieces[0].run), 0, "me")
    ledger.close()  # as its process's death would
    taken_soon = Retrying(
        stop=stop_after_delay(10), wait=wait_fixed(0.05), retry=retry_if_exception_type(AlreadyRunning)
    )
    taken_soon(lambda: Shards(other).take(Shards(other).find(pieces[0].run), 0, "me"))
    other.close()


def test_a_stale_token_commits_nothing_and_leaves_its_rows_in_doubt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that slept through its lease writes its store once more, while another has done its shard."""
    pieces = bench.pipeline.begin_run(label="night", shards=1)
    asleep, awake = threading.Event(), threading.Event()
    caught: list[BaseException] = []
    real = Ledger.commit

    def commit(self: Ledger, *arguments: Any) -> None:
        if threading.current_thread() is thread:
            asleep.set()
            assert awake.wait(30)
        real(self, *arguments)

    def zombie() -> None:
        try:
            bench.pipeline.run_shard(pieces[0])
        except LeaseLost as error:
            caught.append(error)

    monkeypatch.setattr(Ledger, "commit", commit)
    thread = threading.Thread(target=zombie)
    thread.start()
    assert asleep.wait(30)
    bench.execute("update seedbed_ledger.shard set lease_until = 0")
    done = bench.pipeline.run_shard(pieces[0])
    assert (done.embedded, done.cached) == (0, ROWS)  # paid once: what it had in flight comes from the cache
    awake.set()
    thread.join()
    assert len(caught) == 1
    with bench.pipeline.open() as session:
        destination = session.ledger.destination(session.ledger.pipeline_id("items"), "postgresql")
        assert len(session.ledger.unknown(destination)) == ROWS
    bench.pipeline.finish_run(pieces[0])
    again = bench.pipeline.sync()
    assert (again.upserted, again.embedded) == (ROWS, 0)
    bench.in_step()


def test_no_write_begins_once_another_has_the_shard(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = bench.pipeline.begin_run(label="night", shards=1)
    written: list[int] = []

    def stolen(self: Ledger, destination: Destination, entries: Sequence[Entry]) -> int:
        number = real(self, destination, entries)
        bench.execute("update seedbed_ledger.shard set lease_until = 0")
        other = open_ledger(bench.url)
        Shards(other).take(Shards(other).find(pieces[0].run), 0, "another")
        other.close()
        return number

    real = Ledger.intend
    monkeypatch.setattr(Ledger, "intend", stolen)
    monkeypatch.setattr(PgvectorSink, "upsert", lambda self, points: written.append(len(points)))
    with pytest.raises(LeaseLost):
        bench.pipeline.run_shard(pieces[0])
    assert written == []


def test_who_has_lost_the_ledger_writes_no_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its connection it has lost the lock that says that it lives, whatever its clock says of the lease."""
    pieces = bench.pipeline.begin_run(label="night", shards=1)
    real, written = Ledger.intend, list[int]()

    def cut(self: Ledger, destination: Destination, entries: Sequence[Entry]) -> int:
        number = real(self, destination, entries)
        bench.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
            " and pid <> pg_backend_pid() and query like '%insert into intent%'"
        )
        return number

    monkeypatch.setattr(Ledger, "intend", cut)
    monkeypatch.setattr(Patience, "run", lambda self, call: call())
    with monkeypatch.context() as patched:
        patched.setattr(PgvectorSink, "upsert", lambda self, points: written.append(len(points)))
        with pytest.raises(Transient):
            bench.pipeline.run_shard(pieces[0])
    assert written == []
    monkeypatch.setattr(Ledger, "intend", real)
    assert bench.pipeline.run_shard(pieces[0]).cached == ROWS
    bench.pipeline.finish_run(pieces[0])
    bench.in_step()


def test_a_plan_that_died_before_its_checks_does_not_go_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run("first")
    bench.declared["content"] = {"text": "{body}!"}
    with monkeypatch.context() as patched:
        patched.setattr("seedbed.sharing.opening._Opening._check", lambda *arguments: os_exit())
        patched.setattr(Ledger, "end", lambda *arguments: None)  # a process that is killed says nothing
        with pytest.raises(Killed):
            bench.pipeline.begin_run(label="second", shards=4)
    with pytest.raises(Refused, match="400 of 400 rows would be embedded anew"):
        bench.pipeline.begin_run(label="second", shards=4)


class Killed(BaseException):
    pass


def os_exit() -> None:
    raise Killed


def test_a_shard_of_a_run_that_was_given_up_meanwhile_is_not_taken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = bench.pipeline.begin_run(label="night", shards=1)
    real = Attempt._agree

    def slow(self: Attempt) -> None:
        real(self)
        if self.run.id == pieces[0].run:
            bench.pipeline.begin_run(label="next night", shards=1)

    monkeypatch.setattr(Attempt, "_agree", slow)
    with pytest.raises(Refused, match="another came after it"):
        bench.pipeline.run_shard(pieces[0])


def test_rows_without_a_key_fail_once_however_many_shards(bench: Bench) -> None:
    bench.execute("create table loose (id text, part text, body text)")
    bench.execute("insert into loose select n::text, 'x', 'row ' || n from generate_series(1, 40) n")
    bench.execute("insert into loose values (null, 'x', 'lost'), ('7', null, 'lost too')")
    bench.declared["source"] = {"url": bench.url, "table": "loose", "key": ["id", "part"]}
    for shards in (1, 4):
        told = bench.run(f"night {shards}", shards=shards)
        assert counts(told, "shards", "failed") == (shards, 2)


def test_no_pass_over_the_queue_runs_beside_a_reading_of_all_rows(bench: Bench) -> None:
    bench.declared["source"] |= {"changes": "queue"}
    bench.pipeline.watch()
    bench.run("first")
    ledger = open_ledger(bench.url)
    pipeline = ledger.register("items")
    pieces = bench.pipeline.begin_run(label="all rows", shards=2, full=True)
    with pytest.raises(AlreadyRunning, match="all rows reads all rows"):
        ledger.begin(pipeline, "a pass", alone=False)
    ledger.close()
    for piece in pieces:
        bench.pipeline.run_shard(piece)
    bench.pipeline.finish_run(pieces[0])


def test_past_the_brake_deletes_are_kept_until_allowed(bench: Bench) -> None:
    bench.run("first")
    bench.execute("delete from item where id <= 200")
    pieces = bench.pipeline.begin_run(label="second", shards=4)
    for piece in pieces:
        bench.pipeline.run_shard(piece)
    told = bench.pipeline.finish_run(pieces[0])
    assert told.report.exit_code == 5
    assert told.as_dict()["error"]["setting"] == "limits.max_delete"
    assert bench.execute("select count(*) from vectors") == [(ROWS,)]
    assert bench.run("third", allow_deletes=True)["deleted"] == 200
    bench.in_step()


def test_all_shards_share_one_budget(bench: Bench) -> None:
    bench.declared["limits"] = {"tokens": 500}
    pieces = bench.pipeline.begin_run(label="night", shards=4)
    reports = [bench.pipeline.run_shard(piece) for piece in pieces]
    assert 400 < sum(report.tokens for report in reports) <= 500
    assert any(report.exit_code == 5 for report in reports)
    told = bench.pipeline.finish_run(pieces[0]).as_dict()
    assert told["error"]["code"] == "budget"
    bench.declared["limits"] = {}
    rest = bench.run("next")
    assert rest["embedded"] + told["embedded"] == ROWS
    bench.in_step()


def test_an_end_before_all_shards_are_done_is_refused(bench: Bench) -> None:
    pieces = bench.pipeline.begin_run(label="night", shards=4)
    bench.pipeline.run_shard(pieces[0])
    with pytest.raises(Refused, match="3 of 4 shards are not done: the first is number 1"):
        bench.pipeline.finish_run(pieces[0])
    for piece in pieces[1:]:
        bench.pipeline.run_shard(piece)
    assert bench.pipeline.finish_run(pieces[0]).as_dict()["embedded"] == ROWS


def test_a_pipeline_that_changed_since_the_plan_is_refused(bench: Bench) -> None:
    pieces = bench.pipeline.begin_run(label="night", shards=2)
    bench.declared["content"] = {"text": "{id} {body}"}
    with pytest.raises(Refused, match="the pipeline has changed since this run was planned"):
        bench.pipeline.run_shard(pieces[0])


def test_a_stop_ends_a_shard_which_then_goes_on(bench: Bench) -> None:
    pieces = bench.pipeline.begin_run(label="night", shards=1)
    stop = threading.Event()
    stop.set()
    assert bench.pipeline.run_shard(pieces[0], stop=stop).stopped
    with pytest.raises(Refused, match="1 of 1 shards are not done"):
        bench.pipeline.finish_run(pieces[0])
    bench.pipeline.run_shard(pieces[0])
    assert bench.pipeline.finish_run(pieces[0]).as_dict()["embedded"] == ROWS


def test_a_changed_recipe_is_held_back_before_any_shard(bench: Bench) -> None:
    bench.run("first")
    bench.declared["content"] = {"text": "{body}!"}
    with pytest.raises(Refused, match="400 of 400 rows would be embedded anew"):
        bench.pipeline.begin_run(label="second", shards=4)
    assert bench.run("third", allow_reembed=True)["embedded"] == ROWS


def test_rows_that_fail_are_told_and_forgotten_once_they_are_well(bench: Bench) -> None:
    bench.declared["content"] = {"text": "{body}", "empty": "fail"}
    bench.execute("update item set body = '' where id = 7")
    told = bench.run("first")
    assert counts(told, "embedded", "failed", "dead") == (ROWS - 1, 1, 1)
    bench.execute("update item set body = 'well again' where id = 7")
    assert counts(bench.run("second"), "embedded", "failed", "dead") == (1, 0, 0)
    bench.in_step()


def test_a_watermark_goes_no_further_than_what_was_safe_when_the_run_was_opened(bench: Bench) -> None:
    bench.declared["source"] |= {"changes": "watermark", "watermark": "changed"}
    first = bench.run("first")
    assert first["embedded"] == ROWS
    pieces = bench.pipeline.begin_run(label="second", shards=4)
    bench.pipeline.run_shard(pieces[3])
    bench.execute("update item set body = 'late ' || id, changed = now() where id in (1, 400)")
    for piece in pieces[:3]:
        bench.pipeline.run_shard(piece)
    bench.pipeline.finish_run(pieces[0])
    assert bench.run("third")["embedded"] == 1  # row 400, behind the shard that had been read
    assert bench.run("fourth")["embedded"] == 0


def test_what_is_queued_is_shared(bench: Bench) -> None:
    bench.declared["source"] |= {"changes": "queue"}
    bench.pipeline.watch()
    assert counts(bench.run("first"), "read", "embedded") == (ROWS, ROWS)
    bench.execute("update item set body = 'edited ' || id where id <= 30")
    bench.execute("delete from item where id > 395")
    told = bench.run("second")
    assert counts(told, "read", "embedded", "deleted", "shards") == (30, 30, 5, 1)
    assert bench.execute("select count(*) from seedbed_queue.change") == [(0,)]
    bench.in_step()


def test_a_ledger_in_a_file_makes_one_shard_on_its_own_machine(bench: Bench) -> None:
    bench.declared["ledger"] = {"url": "sqlite:./l"}
    pieces = bench.pipeline.begin_run(label="night", shards=8)
    assert [piece.of for piece in pieces] == [1]
    with pytest.raises(ConfigError, match="stands in a folder on elsewhere"):
        bench.pipeline.run_shard(replace(pieces[0], host="elsewhere"))
    assert bench.pipeline.run_shard(pieces[0]).upserted == ROWS
    assert bench.pipeline.finish_run(pieces[0]).as_dict()["embedded"] == ROWS


def test_a_store_of_one_process_makes_one_shard(bench: Bench) -> None:
    bench.declared["sink"] = [{"url": "qdrant+embedded:./q", "collection": "vectors"}]
    assert len(bench.pipeline.begin_run(label="night", shards=8)) == 1


@pytest.mark.parametrize("shards", [0, 257])
def test_too_many_or_too_few_shards_are_refused(bench: Bench, shards: int) -> None:
    with pytest.raises(ConfigError, match="from 1 to 256"):
        bench.pipeline.begin_run(label="night", shards=shards)


def test_what_is_no_shard_is_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="is no shard"):
        Shard.from_dict({"run": 1})
    with pytest.raises(Refused, match="knows no shared run 99"):
        bench.pipeline.run_shard(Shard(99, 0, 1))
