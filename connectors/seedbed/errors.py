"""Every error that Seedbed raises, in one tree.

    SeedbedError
    ├── ConfigError            a pipeline file, a URL or a setting is wrong              exit 2
    │   └── MissingDependency  an optional package is not installed: says which
    ├── Refused                done would be worse than not done: a brake, a budget,     exit 5
    │   │                      a foreign collection, another space
    │   ├── AlreadyRunning     another run of the same pipeline holds the ledger
    │   │   └── LeaseLost      another worker has taken a shared run's shard over
    │   └── BudgetSpent        `[limits] tokens` or `money`
    ├── ServiceError           a database, store or model did not do its part            exit 1
    │   ├── Transient          trying again may help: only the pipeline does so
    │   └── Fatal              trying again cannot help: wrong password, expired key
    └── RowError               one row's fault: recorded in the ledger, the others land  exit 3
        └── ContentsRefused    some of a batch's contents; carries the others' vectors

Each carries `message` and, where they are known, `key` (the row), `setting` (the line of the pipeline
file) and `hint` (what to do). They survive pickling, so that they can cross process boundaries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class SeedbedError(Exception):
    """Base of the tree. `code` is the stable name that `--json` shows; `exit_code` the command's status."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, key: str | None = None, setting: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.setting = setting
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.__dict__))

    def __str__(self) -> str:
        where = "".join(f" [{name} {value}]" for name, value in (("row", self.key), ("setting", self.setting)) if value)
        return f"{self.message}{where}" + (f"\n  → {self.hint}" if self.hint else "")

    def as_dict(self) -> dict[str, str | None]:
        """The `error` object of the command line's JSON: code, message, key, setting, hint."""
        return {
            "code": self.code,
            "message": self.message,
            "key": self.key,
            "setting": self.setting,
            "hint": self.hint,
        }


def _rebuild(cls: type[SeedbedError], state: dict[str, Any]) -> SeedbedError:
    error = cls.__new__(cls)
    error.args = (state["message"],)
    error.__dict__.update(state)
    return error


class ConfigError(SeedbedError):
    code = "config"
    exit_code = 2


class MissingDependency(ConfigError):
    code = "missing_dependency"


class Refused(SeedbedError):
    code = "refused"
    exit_code = 5


class AlreadyRunning(Refused):
    code = "already_running"


class LeaseLost(AlreadyRunning):
    code = "lease_lost"


class BudgetSpent(Refused):
    code = "budget"


def budget_spent(amount: str, setting: str) -> BudgetSpent:
    """The error of a run that may spend no more."""
    return BudgetSpent(
        f"the budget of {amount} is spent",
        setting=setting,
        hint="what was embedded is kept: raise the budget or run again, and no call is repeated",
    )


class ServiceError(SeedbedError):
    code = "service"


class Transient(ServiceError):
    code = "transient"


class Fatal(ServiceError):
    code = "fatal"


class RowError(SeedbedError):
    code = "row"
    exit_code = 3


class ContentsRefused(RowError):
    """Some contents of one `embed` call were refused; the others' vectors are here.

    `refused` maps the position in the call to the reason; `vectors` is float32 of shape (n, dimensions)
    whose refused rows are undefined.
    """

    code = "contents_refused"

    def __init__(self, refused: Mapping[int, str], vectors: npt.NDArray[np.float32]) -> None:
        first, reason = next(iter(refused.items()))
        super().__init__(f"{len(refused)} of {len(vectors)} contents refused; first, number {first}: {reason}")
        self.refused = dict(refused)
        self.vectors = vectors
