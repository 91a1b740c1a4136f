"""A gateway's limits and budget: what all its callers may spend in a day."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from seedbed.embedders.account import Keeper, LocalKeeper
from seedbed.embedders.budget import Budget
from seedbed.errors import ConfigError
from seedbed.ledger import open_ledger
from seedbed.prices import Prices
from seedbed.protocols import CanSpend, Embedder


@dataclass(slots=True)
class Governor:
    """`tokens` and `money` (0: no limit) a day, by UTC. With `ledger`, a Postgres, they and the account's limits are
    shared by all that use it and outlive the server; without it they are this process's."""

    tokens: int = 0
    money: float = 0.0
    prices: Prices = field(default_factory=Prices)
    ledger: str | None = None
    _keeper: Keeper | None = None
    _day: str = ""

    def check(self) -> None:
        """Raises ConfigError for a budget in money without a price."""
        if self.money and not self.prices.text:
            raise ConfigError(
                "a budget in money needs a price", setting="--money", hint="--price 0.70 a million tokens"
            )

    def govern(self, embedder: Embedder) -> None:
        """Before each use; cheap where the day is the same. Raises ConfigError, Transient."""
        today = datetime.now(UTC).date().isoformat()
        if today == self._day or not isinstance(embedder, CanSpend):
            return
        keeper = self._keeper = self._keeper or self._open()
        budget = None
        if self.tokens or self.money:
            budget = Budget(f"serve {embedder.space.model} {today}", keeper, self.tokens, self.money, self.prices)
        embedder.govern(keeper, budget)
        self._day = today

    def _open(self) -> Keeper:
        if self.ledger is None:
            return LocalKeeper()
        ledger = open_ledger(self.ledger)
        try:
            keeper = ledger.keeper()
        finally:
            ledger.close()
        if keeper is None:
            raise ConfigError(
                "only a Postgres ledger is shared by many", setting="--ledger", hint="postgresql://…, or leave it out"
            )
        return keeper
