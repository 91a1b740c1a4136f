"""Pace, accounts and budgets by themselves: simulated services, shared ledgers."""

from __future__ import annotations

import asyncio
import heapq
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from seedbed.embedders.account import Account, Buckets, Keeper, LocalKeeper
from seedbed.embedders.budget import Budget
from seedbed.embedders.pace import Pace
from seedbed.errors import BudgetSpent
from seedbed.ledger import open_ledger
from seedbed.prices import Prices


def simulate(
    limit: float, latency: float, injected: float = 0.0, seconds: float = 60, seed: int = 0
) -> tuple[float, float]:
    """A service with a bucket of one second's worth: (rate let through, share refused) after the first ten seconds."""
    chance, pace = random.Random(seed), Pace(ceiling=250)
    now = stock = filled = 0.0
    bucket, answers = limit, list[tuple[float, int, int]]()
    accepted = refused = 0
    while now < seconds:
        at = now + max(0.0, (1 - stock) / pace.rate)
        if answers and answers[0][0] <= at:
            due, epoch, good = heapq.heappop(answers)
            stock, now = min(max(1, pace.rate * 0.1), stock + (due - now) * pace.rate), due
            pace.note(epoch, now, good, 1 - good)
            continue
        stock, now = min(max(1, pace.rate * 0.1), stock + (at - now) * pace.rate) - 1, at
        pace.send(now, 1)
        bucket, filled = min(limit, bucket + (now - filled) * limit), now
        good = int(chance.random() >= injected and bucket >= 1)
        bucket -= good
        if now > 10:
            accepted, refused = accepted + good, refused + 1 - good
        heapq.heappush(answers, (now + latency * chance.uniform(0.8, 1.5), pace.epoch, good))
    return accepted / (seconds - 10), refused / (accepted + refused)


@pytest.mark.parametrize(("limit", "latency"), [(50, 0.05), (50, 0.5), (10, 0.05), (200, 0.1)])
@pytest.mark.parametrize("seed", range(3))
def test_the_pace_finds_a_limit_and_stays_at_it(limit: float, latency: float, seed: int) -> None:
    rate, refused = simulate(limit, latency, seed=seed)
    assert rate > 0.95 * limit
    assert refused < 0.02


@pytest.mark.parametrize("seed", range(6))
def test_refusals_that_have_nothing_to_do_with_the_rate_do_not_slow_it(seed: int) -> None:
    rate, _ = simulate(50, 0.05, injected=0.06, seed=seed)
    assert rate > 0.8 * 50
    rate, _ = simulate(1000, 0.05, injected=0.05, seed=seed)
    assert rate > 0.8 * 0.95 * 250


def test_a_request_of_more_than_a_seconds_tokens_goes_when_the_bucket_is_full() -> None:
    buckets = Buckets.full(0.0, 0, 6000)
    assert buckets.take(0.0, 1, 250.0, 0.1).tokens == 250
    later = buckets.take(1.0, 1, 10.0, 0.1)
    assert later.wait == pytest.approx(0.6, abs=0.01)
    assert buckets.take(1.7, 1, 10.0, 0.1).requests == 1


@pytest.fixture
def keeper(pg_url: str) -> Iterator[Keeper]:
    with closing(open_ledger(pg_url)) as ledger:
        made = ledger.keeper()
        assert made is not None
        with closing(made):
            yield made


def test_many_may_make_one_ledger_at_once(pg_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        for ledger in pool.map(lambda _: open_ledger(pg_url), range(8)):
            ledger.close()


def test_workers_share_one_accounts_requests(keeper: Keeper) -> None:
    granted: list[int] = []

    def work() -> None:
        account = Account("one", keeper, 60_000, 0)
        granted.append(sum(account.lease(1000, 0.0).requests for _ in range(20)))

    started = time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # 50 a second at the start, in a bucket of a quarter of a second.
    assert 1 <= sum(granted) <= 14 + 50 * (time.monotonic() - started)


def test_a_budget_is_shared_and_gives_back_what_was_not_used(keeper: Keeper) -> None:
    one, two = (Budget("run", keeper, tokens=1000) for _ in range(2))

    async def spend(budget: Budget, tokens: float) -> None:
        await budget.reserve(tokens)
        budget.settle((tokens, 0), (tokens, 0))

    asyncio.run(spend(one, 1))
    with pytest.raises(BudgetSpent, match=r"1,000 tokens is spent"):
        asyncio.run(spend(two, 950))
    one.close()
    asyncio.run(spend(two, 935))
    two.close()
    with pytest.raises(BudgetSpent):
        asyncio.run(spend(Budget("run", keeper, tokens=1000), 65))


def test_a_reservation_waits_for_those_in_flight_before_it_gives_up() -> None:
    budget = Budget("run", LocalKeeper(), money=1.0, prices=Prices(text=1_000_000))

    async def run() -> list[str]:
        order: list[str] = []

        async def one() -> None:
            await budget.reserve(0.9)
            await asyncio.sleep(0.05)
            order.append("settled")
            budget.settle((0.9, 0), (0.1, 0))

        async def two() -> None:
            await asyncio.sleep(0.01)
            await budget.reserve(0.8)
            order.append("reserved")
            budget.settle((0.8, 0), (0.8, 0))

        await asyncio.gather(one(), two())
        with pytest.raises(BudgetSpent, match=r"1\.00"):
            await budget.reserve(0.2)
        return order

    assert asyncio.run(run()) == ["settled", "reserved"]


def test_a_ledger_of_the_first_version_is_brought_up(pg_url: str) -> None:
    open_ledger(pg_url).close()
    with psycopg.connect(pg_url, autocommit=True) as connection:
        connection.execute("drop table seedbed_ledger.shared_state, seedbed_ledger.usage_of_model")
        connection.execute("drop table seedbed_ledger.shard, seedbed_ledger.gone")
        connection.execute("alter table seedbed_ledger.run drop column parent, drop column plan")
        connection.execute("alter table seedbed_ledger.intent drop column run_id")
        connection.execute("drop index seedbed_ledger.target_in_doubt")
        connection.execute("update seedbed_ledger.ledger_version set version = 1")
    with closing(open_ledger(pg_url, create=False)) as reading:
        assert reading.usage("m").calls == 0
        assert reading.runs(1) == []
    with closing(open_ledger(pg_url)) as ledger, closing(ledger.keeper() or LocalKeeper()) as keeper:
        assert keeper.update("x", Pace, lambda state, now: (Pace(rate=7.0), state)) is None
        found = keeper.update("x", Pace, lambda state, now: (Pace(), state))
        assert found is not None
        assert found.rate == 7.0
