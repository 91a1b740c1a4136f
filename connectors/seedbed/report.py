"""What a run did: counts of source rows, once however many sinks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from seedbed.errors import BudgetSpent, Refused, SeedbedError

_SPENT = ("embedded", "cached", "upserted", "deleted", "tokens")
_MET = ("read", "skipped", "failed", "newly_failed")


@dataclass(slots=True)
class SinkCounts:
    upserted: int = 0
    deleted: int = 0
    behind: int = 0
    error: str | None = None
    seconds: float = 0.0
    """Spent in this store: its cost beside the others'."""
    fresh: int = 0
    """Rows that had no points there before this run."""

    def as_dict(self) -> dict[str, Any]:
        return {"upserted": self.upserted, "deleted": self.deleted, "behind": self.behind, "error": self.error}

    def less(self, before: SinkCounts) -> SinkCounts:
        names = ("upserted", "deleted", "seconds", "fresh", "behind")
        return replace(self, **{name: getattr(self, name) - getattr(before, name) for name in names})

    def add(self, other: SinkCounts, *, reading: bool) -> None:
        self.upserted += other.upserted
        self.deleted += other.deleted
        self.seconds += other.seconds
        self.fresh += other.fresh
        if reading:
            self.behind += other.behind
            self.error = self.error or other.error


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
    watermark: str | None = None
    """How far a shard has come, where changes are seen by a watermark."""

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

    def as_attempt(self) -> dict[str, Any]:
        """What the ledger keeps of a process's part in a shared run, to be added up by `of_attempt` and `add`."""
        kept = ("newly_failed", "first_failure", "stopped", "currency", "watermark")
        sinks = {name: asdict(counts) for name, counts in self.sinks.items()}
        return {**self.as_record(), **{name: getattr(self, name) for name in kept}, "sinks": sinks}

    @classmethod
    def of_attempt(cls, kept: Mapping[str, Any]) -> SyncReport:
        known = {field.name: kept[field.name] for field in fields(cls) if field.name in kept}
        made = cls(**{**known, "sinks": {name: SinkCounts(**counts) for name, counts in kept.get("sinks", {}).items()}})
        if error := kept.get("error"):
            told = {name: error[name] for name in ("key", "setting", "hint")}
            made.refused = (BudgetSpent if error["code"] == BudgetSpent.code else Refused)(error["message"], **told)
        return made

    def add(self, other: SyncReport, *, reading: bool) -> None:
        """What another process did and spent; with `reading` also what it met, which of several attempts at the same
        rows only the last one tells."""
        for name in (*_SPENT, *(_MET if reading else ())):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.cost is not None:
            self.cost, self.currency = (self.cost or 0.0) + other.cost, other.currency
        if reading:
            self.watermark = max(filter(None, (self.watermark, other.watermark)), default=None)
            self.first_failure = self.first_failure or other.first_failure
            self.refused = self.refused or other.refused
            self.stopped = self.stopped or other.stopped
        for name, counts in other.sinks.items():
            self.sinks.setdefault(name, SinkCounts()).add(counts, reading=reading)

    def less(self, before: SyncReport) -> SyncReport:
        """What has come since this report stood as `before`."""
        since = replace(self, **{name: getattr(self, name) - getattr(before, name) for name in (*_SPENT, *_MET)})
        since.cost = None  # each attempt's own, by its embedder's usage
        since.sinks = {name: counts.less(before.sinks.get(name, SinkCounts())) for name, counts in self.sinks.items()}
        return since


@dataclass(slots=True)
class RunReport:
    """What a shared run did. `report`: its shards' counts, added up; `seconds` from its opening to its end."""

    run: int
    shards: int
    report: SyncReport
    dead: int = 0
    """Rows that fail, from this run or an earlier one, and keep their old vectors."""
    lag: float = 0.0
    """Seconds by which the stores may be behind the source at the run's end."""
    slowest: int | None = None
    slowest_seconds: float = 0.0
    watermark: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The object of `sync --json`, and what is told of a shared run beside it."""
        told = {name: getattr(self, name) for name in ("run", "shards", "dead", "slowest", "watermark")}
        told |= {"lag": round(self.lag, 3), "slowest_seconds": round(self.slowest_seconds, 3)}
        return {**self.report.as_dict(), "cost": self.report.cost, "currency": self.report.currency, **told}


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
