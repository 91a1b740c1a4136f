"""Pipelines whose embedder costs money: budgets, estimates, what a stop or a crash pays for again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedbed import Pipeline
from seedbed.errors import ConfigError, Fatal
from seedbed.status import Check, doctor
from seedbed.testing.ark import ArkEmulator, Faults, Settings

MODEL = "doubao-embedding-vision-250615"
ROWS = 1500
Make = Callable[..., Pipeline]


@pytest.fixture
def emulator() -> ArkEmulator:
    return ArkEmulator(Settings(latency=0.02))


@pytest.fixture
def make(emulator: ArkEmulator, tmp_path: Path) -> Iterator[Make]:
    texts = [f"row {number} of a table" for number in range(ROWS)]
    pq.write_table(pa.table({"id": range(ROWS), "text": texts}), tmp_path / "rows.parquet")
    with ExitStack() as stack:
        url = stack.enter_context(emulator.serving())

        def build(**changes: Any) -> Pipeline:
            declared: dict[str, Any] = {
                "name": "rows",
                "source": {"url": "rows.parquet", "key": ["id"]},
                "content": {"text": "{text}"},
                "embedder": {"url": f"ark:{MODEL}?endpoint={url}", "api_key": "k", "rpm": 100_000, "tpm": 0},
                "sink": [{"url": f"memory:{tmp_path}"}],
                "prices": {"text": 0.7},
                "base": tmp_path,
            }
            return Pipeline(**{**declared, **changes})

        yield build


@pytest.mark.parametrize("limits", [{"tokens": 15_000}, {"money": 0.0105}])
def test_a_budget_is_a_hard_stop_that_goes_on_without_a_repeated_call(
    make: Make, emulator: ArkEmulator, limits: dict[str, Any]
) -> None:
    paid = 0
    for _ in range(10):
        report = make(limits=limits).sync()
        assert report.tokens <= 15_000
        assert report.tokens == emulator.tokens - paid
        paid = emulator.tokens
        if report.exit_code == 0:
            break
        assert report.exit_code == 5
        assert report.embedded == report.upserted > 400
        assert report.as_dict()["error"]["code"] == "budget"
    assert emulator.calls == len(set(emulator.texts)) == ROWS
    assert make().sync().read == ROWS
    assert emulator.calls == ROWS


def test_a_budget_holds_for_a_local_model_too(make: Make) -> None:
    told: dict[str, Any] = {"embedder": {"url": "hash:32"}, "limits": {"tokens": 4000}}
    found = [make(**told).sync() for _ in range(3)]
    assert [(report.embedded, report.exit_code) for report in found] == [(800, 5), (700, 0), (0, 0)]


def test_a_plan_shows_a_range_until_calls_have_told(make: Make, emulator: ArkEmulator) -> None:
    first = make().plan()
    assert first.tokens_range is not None
    assert first.cost_range is not None
    assert first.tokens_range[0] < first.tokens_range[1]
    assert emulator.calls == 0
    make().sync(limit=100)
    second = make().plan()
    assert second.tokens_range is not None
    width, before = (high - low for low, high in (second.tokens_range, first.tokens_range))
    assert width < 0.6 * before
    make().sync(limit=200)
    third = make().plan()
    assert third.tokens_range is None
    assert third.tokens is not None
    paid = emulator.tokens
    report = make().sync()
    assert third.tokens == pytest.approx(emulator.tokens - paid, rel=0.02)
    assert third.cost == pytest.approx(report.cost, rel=0.02)


def test_an_expired_key_stops_with_nothing_marked_done_and_nothing_paid_twice(
    make: Make, emulator: ArkEmulator
) -> None:
    emulator.settings.faults.expire_after = 700
    with pytest.raises(Fatal, match="AuthenticationError"):
        make().sync()
    told = make().status()
    assert told["sinks"]["memory"]["rows"] == 0
    assert told["runs"][0]["tokens"] == emulator.tokens
    assert told["runs"][0]["cost"] == pytest.approx(0.7e-6 * emulator.tokens)
    emulator.settings.faults.expire_after = None
    report = make().sync()
    assert (report.embedded, report.cached) == (ROWS - 700, 700)
    assert emulator.calls == len(set(emulator.texts)) == ROWS


def test_rows_that_the_service_refuses_are_failed_rows(make: Make, emulator: ArkEmulator) -> None:
    emulator.settings.faults.texts["row 77 "] = "InputTextSensitiveContentDetected"
    report = make().sync()
    assert (report.exit_code, report.failed, report.upserted) == (3, 1, ROWS - 1)
    assert "row 77: Ark:" in (report.first_failure or "")


def test_doctor_asks_the_service_for_one_vector(make: Make, emulator: ArkEmulator) -> None:
    def look() -> Check:
        with make().open() as session:
            return next(check for check in doctor(session) if check.what == "embedder")

    assert look().says.endswith("answered, 22 tokens")
    assert emulator.calls == 1
    emulator.settings.faults.expire_after = 0
    bad = look()
    assert not bad.ok
    assert "check the key" in (bad.hint or "")


def test_a_budget_in_money_needs_prices(make: Make) -> None:
    with pytest.raises(ConfigError, match="needs prices") as raised:
        make(limits={"money": 1.0}, prices={})
    assert raised.value.setting == "limits.money"
    with pytest.raises(ConfigError, match="hash:32 costs no money"):
        make(limits={"money": 1.0}, embedder={"url": "hash:32"}).sync()


def test_a_postgres_ledger_keeps_budget_and_limits(make: Make, emulator: ArkEmulator, pg_url: str) -> None:
    told: dict[str, Any] = {"ledger": {"url": pg_url}}
    first = make(limits={"tokens": 15_000}, **told).sync()
    assert (first.exit_code, first.tokens) == (5, emulator.tokens)
    assert first.tokens <= 15_000
    assert make(**told).sync().exit_code == 0
    assert emulator.calls == len(set(emulator.texts)) == ROWS
    with psycopg.connect(pg_url) as connection:
        names = [name for (name,) in connection.execute("select name from seedbed_ledger.shared_state").fetchall()]
    assert sorted(name.split()[0] for name in names) == ["account", "budget"]


def run(make: Make, tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    """`seedbed sync` in a process of its own, into a store that outlives it."""
    config = make().declaration
    file = tmp_path / "rows.toml"
    file.write_text(
        'name = "rows"\n[source]\nurl = "rows.parquet"\nkey = ["id"]\n[content]\ntext = "{text}"\n'
        f'[embedder]\nurl = "{config.embedder.url}"\napi_key = "${{KEY}}"\nrpm = 100000\ntpm = 0\n'
        '[[sink]]\nurl = "qdrant+embedded:store"\n'
    )
    command = [sys.executable, "-m", "seedbed", "sync", str(file), "--json", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "KEY": "k"})


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_signal_stops_within_a_batch_and_what_is_embedded_is_written(
    make: Make, emulator: ArkEmulator, tmp_path: Path
) -> None:
    emulator.settings = Settings(latency=0.3)
    process = run(make, tmp_path)
    until(lambda: emulator.calls > 200)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    told = json.loads(process.communicate()[0])
    assert time.monotonic() - asked < 15
    assert process.returncode == 1
    assert 200 <= told["embedded"] == told["upserted"] < ROWS
    emulator.settings = Settings()
    second = run(make, tmp_path)
    told = json.loads(second.communicate()[0])
    assert told["embedded"] + told["cached"] + told["upserted"] > 0
    assert emulator.calls - len(set(emulator.texts)) <= 130


def test_a_killed_run_pays_again_for_what_was_in_flight_alone(
    make: Make, emulator: ArkEmulator, tmp_path: Path
) -> None:
    process = run(make, tmp_path)
    until(lambda: emulator.calls > 800)
    process.kill()
    process.communicate()
    second = run(make, tmp_path)
    told = json.loads(second.communicate()[0])
    assert second.returncode == 0
    assert told["upserted"] == ROWS
    # Those of the last fifth of a second, and what was in flight.
    assert emulator.calls - ROWS < 700
    assert told["cached"] > 100


def test_faults_of_the_service_lose_nothing(make: Make, emulator: ArkEmulator) -> None:
    emulator.settings = Settings(faults=Faults(share_429=0.05, share_500=0.01, seed=2))
    report = make().sync()
    assert (report.exit_code, report.upserted) == (0, ROWS)
    assert emulator.calls == len(set(emulator.texts)) == ROWS
