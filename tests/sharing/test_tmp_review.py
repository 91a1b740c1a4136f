from __future__ import annotations
import threading
from pathlib import Path
from typing import Any, Iterator
import psycopg, pytest
from seedbed.errors import *
from seedbed.ledger import Ledger, open_ledger
from seedbed.ledger.shards import Shards
from seedbed.sharing import Shard
from seedbed.sinks.pgvector import PgvectorSink
import importlib.util, sys
spec = importlib.util.spec_from_file_location("orig_sharing", Path(__file__).with_name("test_sharing.py"))
orig = importlib.util.module_from_spec(spec); sys.modules["orig_sharing"] = orig; spec.loader.exec_module(orig)
Bench, ROWS = orig.Bench, orig.ROWS

@pytest.fixture
def bench(pg_url, tmp_path):
    made = Bench(pg_url, tmp_path); yield made; made.connection.close()

def test_1_killed_plan_bypasses_brake(bench, monkeypatch):
    bench.run("first")
    bench.declared["content"] = {"text": "{body}!"}
    with monkeypatch.context() as m:
        m.setattr("seedbed.sharing.opening.check_recipe", lambda *a, **k: (_ for _ in ()).throw(SystemExit(9)))
        m.setattr(Ledger, "end", lambda *a, **k: None)  # as kill -9
        with pytest.raises(SystemExit):
            bench.pipeline.begin_run(label="second", shards=4)
    try:
        told = bench.run("second")
    except Refused as e:
        print("REFUSED (right)", e); return
    print("NO BRAKE; embedded", told["embedded"])
    assert told["embedded"] == 0

def test_2_given_up_run_worked_on(bench, monkeypatch):
    """The worker loads its model while another run gives its own up."""
    from seedbed.sharing.attempt import Attempt
    old = bench.pipeline.begin_run(label="night", shards=1)
    real = Attempt._agree
    once = []
    def agree(self):
        real(self)
        if not once:
            once.append(1)
            once.append(bench.pipeline.begin_run(label="next", shards=1))
    monkeypatch.setattr(Attempt, "_agree", agree)
    r = bench.pipeline.run_shard(old[0])
    print("old run's shard did", r.upserted, "while the run is given up:", bench.execute("select id, who, outcome from seedbed_ledger.run where parent is null"))
    assert r.upserted == 0

def test_2b_stale_over_newer(bench, monkeypatch):
    from seedbed.sharing.attempt import Attempt
    from seedbed.writing import SinkWriter
    bench.run("first")
    bench.execute("update item set body = 'v2 ' || id where id = 1")
    old = bench.pipeline.begin_run(label="night", shards=1)
    real, once = Attempt._agree, []
    def agree(self):
        real(self)
        if not once:
            once.append(1)
            once.append(bench.pipeline.begin_run(label="next", shards=1))
    monkeypatch.setattr(Attempt, "_agree", agree)
    realw, done = SinkWriter.write, []
    def write(self, batch):
        if not done:  # the old shard has read v2; the new run reads and writes v3 before it
            done.append(1)
            bench.execute("update item set body = 'v3 ' || id where id = 1")
            bench.pipeline.run_shard(once[1][0]); bench.pipeline.finish_run(once[1][0])
        return realw(self, batch)
    monkeypatch.setattr(SinkWriter, "write", write)
    bench.pipeline.run_shard(old[0])
    plan = bench.pipeline.plan().as_dict()
    print("plan after:", plan)

def test_3_keyless(bench):
    bench.execute("create table loose (id int, body text)")
    bench.execute("insert into loose select n, 'row ' || n from generate_series(1, 40) n")
    bench.execute("insert into loose values (null, 'no key')")
    bench.declared["source"] = {"url": bench.url, "table": "loose", "key": ["id"]}
    one = bench.run("one", shards=1)
    four = bench.run("four", shards=4)
    print("one shard", one["read"], one["failed"], "four", four["read"], four["failed"], "sync", bench.pipeline.sync().failed)
    assert one["failed"] == four["failed"]

def test_4_usage_twice(bench, monkeypatch):
    calls = []
    real = Ledger.add_usage
    monkeypatch.setattr(Ledger, "add_usage", lambda self, model, used: (calls.append(used), real(self, model, used))[1])
    bench.declared["source"] |= {"changes": "queue"}
    bench.pipeline.watch()
    bench.run("first")
    n = len(calls)
    bench.execute("update item set body = 'edited ' || id where id <= 30")
    bench.run("second")
    print("add_usage calls in first", n, "in queue run:", [c.calls for c in calls[n:]])
    assert len([c for c in calls[n:] if c.calls]) == 1

def test_5_behind_negative(bench, monkeypatch):
    bench.execute("insert into item select n, 'row ' || n from generate_series(401, 4000) n")
    bench.declared["sink"] = [{"name": "a", "url": bench.url, "collection": "vectors"}, {"name": "b", "url": bench.url, "collection": "vectors_b"}]
    bench.run("first", shards=1)
    bench.execute("delete from item where id <= 3500")
    pieces = bench.pipeline.begin_run(label="second", shards=1, allow_deletes=True)
    bench.pipeline.run_shard(pieces[0])
    real, n = PgvectorSink.delete, []
    def delete(self, ids):
        if self._name == "vectors_b" if hasattr(self, "_name") else False:
            n.append(1)
            if len(n) > 2: raise Fatal("down")
        return real(self, ids)
    monkeypatch.setattr(PgvectorSink, "delete", delete)
    told = bench.pipeline.finish_run(pieces[0]).as_dict()
    print(told["sinks"])
    assert told["sinks"]["b"]["behind"] == 3500 - 2048

def test_6_finish_failing_halfway(bench, monkeypatch):
    bench.execute("insert into item select n, 'row ' || n from generate_series(401, 4000) n")
    bench.run("first", shards=1)
    bench.execute("delete from item where id <= 3500")
    pieces = bench.pipeline.begin_run(label="second", shards=1, allow_deletes=True)
    bench.pipeline.run_shard(pieces[0])
    real, n = PgvectorSink.delete, []
    def delete(self, ids):
        n.append(1)
        if len(n) == 3: raise Fatal("down")
        return real(self, ids)
    monkeypatch.setattr(PgvectorSink, "delete", delete)
    shown = []
    with pytest.raises(Fatal):
        bench.pipeline.finish_run(pieces[0], progress=lambda r: shown.append(r.deleted))
    told = bench.pipeline.finish_run(pieces[0], progress=lambda r: shown.append((r.deleted, {k: s.deleted for k, s in r.sinks.items()}))).as_dict()
    print("deleted told", told["deleted"], told["sinks"], "progress", shown)
    assert told["deleted"] == 3500

def test_9_folder_host(bench):
    bench.declared["sink"] = [{"url": "qdrant+embedded:./q", "collection": "vectors"}]
    print(bench.pipeline.begin_run(label="a", shards=4))
    bench.declared["sink"] = [{"url": "pgvector+embedded:./p", "collection": "vectors"}]
    print(len(bench.pipeline.begin_run(label="b", shards=4)), "shards on pgvector+embedded")

def test_11_partly_beside_full(bench, monkeypatch):
    from seedbed.delivery import Delivery
    bench.declared["source"] |= {"changes": "queue"}
    bench.pipeline.watch()
    bench.run("first")
    bench.execute("update item set body = 'edited ' || id where id <= 30")
    real, ok = Delivery.open, []
    def opened(self, *, alone):
        if not ok:
            ok.append(1)
            ok.append(bench.pipeline.sync().as_dict())
        return real(self, alone=alone)
    monkeypatch.setattr(Delivery, "open", opened)
    bench.pipeline.begin_run(label="full", shards=2, full=True)
    print("sync inside of opening a full run read", ok[1]["read"])

def test_12_watermark_failures(bench):
    bench.declared["content"] = {"text": "{body}", "empty": "fail"}
    bench.declared["source"] |= {"changes": "watermark", "watermark": "changed"}
    bench.execute("update item set body = '' where id = 7")
    told = bench.run("first")
    print("shared: failed", told["failed"], "read", told["read"], "dead", told["dead"])
    bench.execute("update item set body = 'well', changed = now() where id = 7")
    told = bench.run("second")
    print("shared cured: failed", told["failed"], "dead", told["dead"], "embedded", told["embedded"])
    print("sync after: dead", len(bench.pipeline.status()["failed"]), bench.pipeline.sync().failed, len(bench.pipeline.status()["failed"]))

def test_13_reopened_status(bench):
    pieces = bench.pipeline.begin_run(label="night", shards=2)
    for p in pieces: bench.pipeline.run_shard(p)
    bench.pipeline.finish_run(pieces[0])
    bench.pipeline.run_shard(pieces[1])
    s = bench.pipeline.status()
    print("status after a cleared shard:", s["runs"][0], s["sinks"])

def test_14_sqlite_queue_steal(bench, tmp_path):
    bench.declared["ledger"] = {"url": "sqlite:./l"}
    bench.declared["source"] |= {"changes": "queue"}
    bench.pipeline.watch(); bench.run("first")
    bench.execute("update item set body = 'edited ' || id where id <= 30")
    pieces = bench.pipeline.begin_run(label="second", shards=1)
    from seedbed.writing import SinkWriter
    real, out = SinkWriter.write, []
    def write(self, batch):
        if not out:
            out.append(1)
            try: out.append(bench.pipeline.run_shard(pieces[0]))
            except SeedbedError as e: out.append(e)
        return real(self, batch)
    import pytest as _p
    mp = _p.MonkeyPatch(); mp.setattr(SinkWriter, "write", write)
    try:
        try: print("first:", bench.pipeline.run_shard(pieces[0]).upserted)
        except SeedbedError as e: print("first:", type(e), e)
    finally: mp.undo()
    print("second:", repr(out[1]))
