"""A shard's lease, kept alive by a thread while its attempt works."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from seedbed.errors import SeedbedError
from seedbed.ledger import Held
from seedbed.ledger.base import lease_lost
from seedbed.ledger.shards import LEASE, Shards

_RENEWED = LEASE / 6


class Lease:
    """Use it in a `with`: it ends with it, and others may have the shard at once, unless it was completed. `counts` is
    what the attempt has done so far, noted with each renewal."""

    def __init__(self, shards: Shards, held: Held, counts: Callable[[], dict[str, Any]]) -> None:
        self.held = held
        self._shards = shards
        self._counts = counts
        self._lost = False
        self._closed = threading.Event()
        self._renewing = threading.Thread(target=self._renew_often, name="seedbed-lease", daemon=True)

    def __enter__(self) -> Lease:
        self._renewing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._renewing.join()
        with suppress(SeedbedError):  # it runs out by itself
            self._shards.release(self.held)

    def outlast_write(self) -> None:
        """Before a store is written: asks the ledger, so that the lease outlasts the write's longest (WRITE_SECONDS)
        and nobody takes the shard over while it is on its way. Not by this process's clock: who has lost the connection
        has lost the lock that says that it lives. Raises LeaseLost, and Transient where the ledger is away."""
        self._renew()
        if self._lost:
            raise lease_lost()

    def _renew_often(self) -> None:
        while not self._closed.wait(_RENEWED) and not self._lost:
            with suppress(SeedbedError):  # tried again; a write asks before it begins
                self._renew()

    def _renew(self) -> None:
        if self._shards.renew(self.held):
            self._shards.note(self.held, self._counts())
        else:
            self._lost = True
