"""An embedder whose model is somewhere else: vectors by calls that run beside one another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import cached_property

import numpy as np
import numpy.typing as npt

from seedbed.content import Content, Kind
from seedbed.embedders.account import Keeper
from seedbed.embedders.budget import Budget
from seedbed.embedders.calls import Answer, Api, Calls, Outcome, unit
from seedbed.errors import ContentsRefused, Fatal, RowError
from seedbed.identity import Space
from seedbed.protocols import Portion, Usage, Vectors


def account_name(endpoint: str, model: str, key: str | None) -> str:
    """Tells accounts apart: the service, the model's family, and a digest of the key."""
    digest = hashlib.sha256(f"seedbed account {key or ''}".encode()).hexdigest()[:16]
    return f"{endpoint} {model} {digest}"


class RemoteEmbedder:
    """As protocols.Embedder, CanStream, CanSubmit, CanSpend. Requests that fail for a while are sent again within; what
    is raised is ContentsRefused, Transient, Fatal, and BudgetSpent where a budget governs."""

    def __init__(
        self, space: Callable[[], Space], calls: Calls, api: Api, usage: Usage, told: Mapping[str, str]
    ) -> None:
        """`space` is asked once, when the space is first needed."""
        self._learn, self._calls, self._api, self._usage, self._told = space, calls, api, usage, told

    @cached_property
    def space(self) -> Space:
        return self._learn()

    @property
    def takes(self) -> frozenset[str]:
        _ = self.space  # some services are asked what they are
        return self._api.takes

    @property
    def usage(self) -> Usage:
        return self._usage

    def embed(self, contents: Sequence[Content], kind: Kind = "document") -> Vectors:
        """float32 (n, dimensions), unit length."""
        vectors = np.zeros((len(contents), self.space.dimensions), np.float32)
        refused: dict[int, str] = {}
        for portion in self.stream(contents, kind):
            vectors[portion.positions] = portion.vectors
            refused.update(portion.refused)
        if refused:
            raise ContentsRefused(refused, vectors)
        return vectors

    def stream(self, contents: Sequence[Content], kind: Kind = "document") -> Generator[Portion, None, None]:
        """The vectors as they come, in any order; each is paid for, so each should be kept at once."""
        if not contents:
            return
        with closing(self._calls.each(contents, kind)) as found:
            yield from (self._portion(outcomes) for outcomes in found)

    def _portion(self, outcomes: list[Outcome]) -> Portion:
        nothing = np.zeros((0, self.space.dimensions), np.float32)
        made = [outcome for outcome in outcomes if outcome.vectors is not None]
        positions = [position for outcome in made for position in outcome.positions]
        refused = {position: why for outcome in outcomes for position, why in outcome.refused.items()}
        vectors, wrong = unit(np.concatenate([nothing, *(o.vectors for o in made if o.vectors is not None)]))
        if wrong:
            refused |= {positions[row]: why for row, why in wrong.items()}
            kept = [row for row in range(len(positions)) if row not in wrong]
            positions, vectors = [positions[row] for row in kept], vectors[kept]
        return Portion(positions, vectors, refused)

    def submit(self, content: Content, kind: Kind = "document") -> Future[Vectors]:
        """One content's vector, shape (dimensions,), unit length."""
        answer: Future[Vectors] = Future()

        def done(found: Future[Answer]) -> None:
            if not answer.set_running_or_notify_cancel():
                return
            if found.cancelled() or (error := found.exception()) is not None:
                answer.set_exception(Fatal("the embedder was closed") if found.cancelled() else error)
                return
            vectors, wrong = unit(found.result().vectors)
            if wrong:
                answer.set_exception(RowError(wrong[0]))
            else:
                answer.set_result(vectors[0])

        self._calls.submit(content, kind).add_done_callback(done)
        return answer

    def govern(self, keeper: Keeper | None = None, budget: Budget | None = None) -> None:
        """Before the first call: limits that stand with `keeper`, shared by all that use it, and a budget."""
        if keeper is not None:
            self._calls.account.keeper = keeper
        if self._calls.budget is not None:
            self._calls.budget.close()  # what it holds and has not used is another's
        self._calls.budget = budget

    def count_tokens(self, contents: Sequence[Content], kind: Kind = "document") -> npt.NDArray[np.int64]:
        """Estimates: only the service counts. `usage` tells how far they were off."""
        return np.array([round(self._api.estimate(content, kind)) for content in contents], np.int64)

    def provenance(self) -> Mapping[str, str]:
        return {"dtype": "float32", "device": "service", **self._told}

    def close(self) -> None:
        self._calls.close()
