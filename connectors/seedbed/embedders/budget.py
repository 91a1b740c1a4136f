"""What a run may spend: a hard stop, reserved before each call and settled after it.

A reservation is never too small, so a budget is not overrun; what it took too much is given back by the call's own
count. Many workers share one budget through a keeper, each holding a slice of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from seedbed.embedders.account import Keeper
from seedbed.errors import BudgetSpent, ServiceError, budget_spent
from seedbed.prices import Prices

_SLICE = 64
"""Calls' worth that a worker takes at once from a budget that others share."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens and money."""

    tokens: float = 0.0
    money: float = 0.0

    def plus(self, other: Spent, sign: int = 1) -> Spent:
        return Spent(self.tokens + sign * other.tokens, self.money + sign * other.money)

    def covers(self, need: Spent) -> bool:
        return self.tokens >= need.tokens and self.money >= need.money


class Allowance:
    """At most `tokens` under one `name`, for an embedder whose contents are counted before they are embedded."""

    def __init__(self, name: str, keeper: Keeper, tokens: int) -> None:
        self._name, self._keeper, self._tokens = f"budget {name}", keeper, tokens

    def take(self, counts: Sequence[int]) -> int:
        """How many of the contents, in their order, may be embedded: their tokens are spent now."""

        def change(state: Spent | None, now: float) -> tuple[Spent, int]:
            spent, fitting = state or Spent(), 0
            for fitting, count in enumerate(counts, 1):
                if spent.tokens + count > self._tokens:
                    return spent, fitting - 1
                spent = spent.plus(Spent(count))
            return spent, fitting

        return self._keeper.update(self._name, Spent, change)

    def give_back(self, tokens: int) -> None:
        """What was taken and not used."""
        if tokens > 0:
            self._keeper.update(self._name, Spent, lambda state, _: ((state or Spent()).plus(Spent(tokens), -1), None))

    def spent(self) -> BudgetSpent:
        return budget_spent(f"{self._tokens:,} tokens", "limits.tokens")


class Budget:
    """At most `tokens` and `money` under one `name`; 0 is no limit. Used by one event loop."""

    def __init__(self, name: str, keeper: Keeper, tokens: int = 0, money: float = 0.0, prices: Prices | None = None):
        self.prices = prices or Prices()
        self._name, self._keeper = f"budget {name}", keeper
        self._limit = Spent(tokens or float("inf"), money or float("inf"))
        self._held = Spent()
        self._reserved = 0
        self._settled = asyncio.Event()

    async def reserve(self, text: float, image: float = 0) -> None:
        """Takes so many tokens, at most, for a call. Waits where those in flight may give some back; raises
        BudgetSpent where none are and it does not fit."""
        need = Spent(text + image, self.prices.cost(text, image))
        while not await self._fits(need):
            if not self._reserved:
                raise self._spent()
            self._settled.clear()
            await self._settled.wait()
        self._held = self._held.plus(need, -1)
        self._reserved += 1

    def settle(self, reserved: tuple[float, float], used: tuple[float, float] = (0.0, 0.0)) -> None:
        """Ends a reservation: (text, image) tokens that were reserved, and that were used."""
        back = Spent(sum(reserved) - sum(used), self.prices.cost(*reserved) - self.prices.cost(*used))
        self._held = self._held.plus(back)
        self._reserved -= 1
        self._settled.set()

    def close(self) -> None:
        """Gives back what was leased and not used; where that cannot be, it counts as spent."""
        held, self._held = self._held, Spent()
        with suppress(ServiceError):
            self._keeper.update(self._name, Spent, lambda state, _: ((state or Spent()).plus(held, -1), None))

    async def _fits(self, need: Spent) -> bool:
        if not self._held.covers(need):
            given = await asyncio.to_thread(self._lease, need) if self._keeper.shared else self._lease(need)
            self._held = self._held.plus(given)
        return self._held.covers(need)

    def _lease(self, need: Spent) -> Spent:
        held = self._held

        def change(state: Spent | None, now: float) -> tuple[Spent, Spent]:
            spent = state or Spent()
            left = self._limit.plus(spent, -1)
            given = Spent(
                max(0.0, min(left.tokens, need.tokens * _SLICE - held.tokens)),
                max(0.0, min(left.money, need.money * _SLICE - held.money)),
            )
            return spent.plus(given), given

        return self._keeper.update(self._name, Spent, change)

    def _spent(self) -> BudgetSpent:
        if self._limit.tokens < float("inf"):
            return budget_spent(f"{self._limit.tokens:,.0f} tokens", "limits.tokens")
        return budget_spent(f"{self._limit.money:,.2f} {self.prices.currency}".rstrip(), "limits.money")
