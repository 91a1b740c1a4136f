"""What a scheduler carries of a shared run, and what all of its workers must agree on."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from seedbed.errors import ConfigError
from seedbed.ledger.shards import SharedRun
from seedbed.session import Session
from seedbed.sync import SyncOptions

_OPTIONS = ("full", "allow_deletes", "allow_reembed")


@dataclass(frozen=True, slots=True)
class Shard:
    """A piece of a shared run: the `number`th `of` so many. `host`: the only machine that has the ledger, the source
    or a store, where one of them stands in a folder."""

    run: int
    number: int
    of: int
    host: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Shard:
        """Raises ConfigError."""
        try:
            return cls(**given)
        except TypeError:
            raise ConfigError(
                f"{dict(given)!r} is no shard", hint="take one that the plan gave: run, number, of, host"
            ) from None

    def check_host(self) -> None:
        """Raises ConfigError on another machine than the one that it is bound to."""
        here = socket.gethostname()
        if self.host not in (None, here):
            raise ConfigError(
                f"the ledger or a store stands in a folder on {self.host}, and this worker runs on {here}",
                setting="ledger.url",
                hint='workers on several machines share a ledger in Postgres: url = "postgresql://…"',
            )


def told(session: Session, options: SyncOptions) -> dict[str, Any]:
    """The options and budgets of a run, for its workers."""
    limits = session.declaration.limits
    return {**{name: getattr(options, name) for name in _OPTIONS}, "tokens": limits.tokens, "money": limits.money}


def options_of(run: SharedRun) -> SyncOptions:
    return SyncOptions(**{name: run.plan["options"][name] for name in _OPTIONS})


def declared(session: Session) -> str:
    """A digest of what all workers of a run must agree on."""
    declaration = session.declaration
    source = declaration.source
    agreed = [
        session.recipe.fingerprint,
        session.embedder.space.to_json(),
        [source.table, source.query, source.where, source.key, source.tenant, source.deleted],
        [source.changes, source.watermark, source.lag],
        [[sink.name, sink.collection, sink.payload, sink.metric, sink.store_text] for sink in declaration.sink],
    ]
    return hashlib.sha256(json.dumps(agreed).encode()).hexdigest()
