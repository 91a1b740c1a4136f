"""What a run did: counts of source rows, once however many sinks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from seedbed.errors import SeedbedError


@dataclass(slots=True)
class SinkCounts:
    upserted: int = 0
    deleted: int = 0
    behind: int = 0
    error: str | None = None
    seconds: float = 0.0
    """Spent in this store: its cost beside the others'."""

    def as_dict(self) -> dict[str, Any]:
        return {"upserted": self.upserted, "deleted": self.deleted, "behind": self.behind, "error": self.error}


@dataclass(slots=True)
class SyncReport:
    """`embedded`: a model was called; `cached`: answered without. `seconds` of wall clock."""

    read: int = 0
    embedded: int = 0
    cached: int = 0
    upserted: int = 0
    deleted: int = 0
    skipped: int = 0
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    sinks: dict[str, SinkCounts] = field(default_factory=dict)
    newly_failed: int = 0
    first_failure: str | None = None
    refused: SeedbedError | None = None
    """Set where a brake held something back (deletes, say) after the rest was done."""
    stopped: bool = False
    cost: float | None = None
    """In `currency`, by `[prices]`; None where there are none, or nothing was embedded."""
    currency: str = ""

    @property
    def exit_code(self) -> int:
        if self.refused is not None:
            return self.refused.exit_code
        if self.stopped or any(sink.error for sink in self.sinks.values()):
            return 1
        return 3 if self.newly_failed else 0

    @property
    def outcome(self) -> str:
        return {0: "done", 1: "failed", 3: "done with failed rows", 5: "stopped by a brake"}[self.exit_code]

    def as_dict(self) -> dict[str, Any]:
        """The object that `sync --json` prints."""
        names = ("read", "embedded", "cached", "upserted", "deleted", "skipped", "failed", "tokens")
        shown: dict[str, Any] = {name: getattr(self, name) for name in names}
        shown["seconds"] = round(self.seconds, 3)
        shown["sinks"] = {name: counts.as_dict() for name, counts in self.sinks.items()}
        if self.refused is not None:
            shown["error"] = self.refused.as_dict()
        return shown

    def as_record(self) -> dict[str, Any]:
        """What the ledger keeps of a run."""
        sinks = {name: {**counts.as_dict(), "seconds": round(counts.seconds, 3)} for name, counts in self.sinks.items()}
        cost = {} if self.cost is None else {"cost": self.cost}
        return {**self.as_dict(), **cost, "sinks": sinks}


@dataclass(slots=True)
class PlanReport:
    """What a run would do. `tokens` are those of contents that no cache answers; None where the embedder
    cannot count. `cost` in `currency`, from `[prices]`."""

    new: int = 0
    changed: int = 0
    payload_changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    skipped: int = 0
    failed: int = 0
    tokens: int | None = 0
    image_tokens: int = 0
    """Those of `tokens` that pictures and video make."""
    cost: float | None = None
    currency: str = ""
    tokens_range: tuple[int, int] | None = None
    cost_range: tuple[float, float] | None = None
    """Where tokens are estimated: (least, most), as long as too few calls have told how far the estimate is off."""

    def as_dict(self) -> dict[str, Any]:
        told = {name: value for name, value in asdict(self).items() if name != "image_tokens"}
        return {name: value for name, value in told.items() if not name.endswith("_range") or value is not None}
