"""Which rows of a page need work: the source's hashes against what the ledger says stands at each sink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from seedbed.content import Content
from seedbed.ledger import Destination, Ledger, RowFailure, Standing
from seedbed.protocols import Page
from seedbed.recipe import PayloadRecipe, Recipe, Rendered, is_bytes
from seedbed.work import NOTHING, PAYLOAD, VECTOR, Need, Work

Fetch = Callable[[Page, Sequence[int]], tuple[pa.RecordBatch, dict[int, str | None]]]
"""protocols.CanFetch.fetch."""


class Gone(NamedTuple):
    """A row whose points must go from one sink (by its number in the pipeline)."""

    sink: int
    position: bytes
    key: str
    points: int


@dataclass(slots=True)
class PageDiff:
    work: Work | None = None
    gone: list[Gone] = field(default_factory=list)
    failures: list[RowFailure] = field(default_factory=list)
    keyless: list[str] = field(default_factory=list)
    """Reasons of rows that have no usable key, which the ledger cannot name."""
    read: int = 0
    skipped: int = 0
    new: int = 0
    changed: int = 0
    payload_changed: int = 0
    unchanged: int = 0


class Differ:
    """Compares pages with the ledger, for the sinks that are up (a destination None stands for an empty one)."""

    def __init__(
        self,
        recipe: Recipe,
        payloads: Sequence[PayloadRecipe],
        ledger: Ledger,
        destinations: Sequence[Destination | None],
        *,
        rewrite: bool = False,
        fetch: Fetch | None = None,
    ) -> None:
        self._fetch = fetch
        self._recipe = recipe
        self._payloads = payloads
        self._ledger = ledger
        self._destinations = destinations
        self._rewrite = rewrite

    def diff(self, page: Page) -> PageDiff:
        rendered = self._recipe.render(page.rows)
        hashes = self._recipe.hashes(rendered)
        empty = rendered.skipped | rendered.refused.keys()
        result = PageDiff(read=len(page.keys) + len(page.failed), skipped=len(rendered.skipped))
        self._note_failures(page, hashes, rendered, result)
        staying = {position for position, _ in page.failed.values()}
        staying |= {page.positions[index] for index in rendered.refused}
        needs = [self._need(number, page, hashes, empty, staying, result) for number in range(len(self._destinations))]
        result.unchanged = len(page.keys) - len(empty)
        if not any(any(need.what) for need in needs):
            return result
        wanted = [index for index, whats in enumerate(zip(*(need.what for need in needs), strict=True)) if any(whats)]
        if self._fetch is None:
            rows = page.rows if len(wanted) == len(hashes) else page.rows.take(pa.array(wanted, pa.int64()))
            contents = rendered.contents(wanted)
        else:
            wanted, rows, contents = self._whole(page, wanted, needs, result)
        self._classify(wanted, needs, result)
        if wanted:
            result.work = _work(page, rows, contents, hashes, needs, wanted)
        return result

    def _whole(
        self, page: Page, wanted: list[int], needs: list[Need], result: PageDiff
    ) -> tuple[list[int], pa.RecordBatch, list[tuple[Content, ...]]]:
        """The rows that are to be written, read whole; without those that cannot be had or turn out to be empty."""
        assert self._fetch is not None
        rows, missing = self._fetch(page, wanted)
        rendered = self._recipe.render(rows)
        kept = list[int]()
        for number, index in enumerate(wanted):
            reason = missing[index] if index in missing else rendered.refused.get(number)
            if index not in missing and number not in rendered.skipped and reason is None:
                kept.append(number)
                continue
            result.unchanged -= 1
            if reason is not None:
                result.failures.append(RowFailure(page.positions[index], page.keys[index], None, reason))
            elif index not in missing:
                result.skipped += 1
                result.gone += self._emptied(page, index, needs)
        if len(kept) < len(wanted):
            rows = rows.take(pa.array(kept, pa.int64()))
        return [wanted[number] for number in kept], rows, rendered.contents(kept)

    @staticmethod
    def _emptied(page: Page, index: int, needs: list[Need]) -> list[Gone]:
        return [
            Gone(number, page.positions[index], page.keys[index], need.stands[index])
            for number, need in enumerate(needs)
            if need.stands[index]
        ]

    @staticmethod
    def _note_failures(page: Page, hashes: list[bytes], rendered: Rendered, result: PageDiff) -> None:
        for key, (position, reason) in page.failed.items():
            if position is None:
                result.keyless.append(reason)
            else:
                result.failures.append(RowFailure(position, key, None, reason))
        result.failures += [
            RowFailure(page.positions[row], page.keys[row], hashes[row], reason)
            for row, reason in sorted(rendered.refused.items())
        ]

    def _need(
        self,
        number: int,
        page: Page,
        hashes: list[bytes],
        empty: set[int],
        staying: set[bytes | None],
        result: PageDiff,
    ) -> Need:
        payload = self._payloads[number].hashes(page.rows)
        standing = self._standing(number, page)
        unchanged = (
            not empty
            and not self._rewrite
            and standing.positions == page.positions
            and standing.content == hashes
            and standing.payload == payload
        )
        if unchanged:
            return Need(payload, [NOTHING] * len(hashes), standing.points)
        at = dict(zip(standing.positions, range(len(standing.positions)), strict=True))
        need = Need(payload, [NOTHING] * len(hashes), [0] * len(hashes))
        for index, position in enumerate(page.positions):
            if index in empty:
                continue
            found = at.get(position)
            if found is None:
                need.what[index] = VECTOR
                continue
            need.stands[index] = standing.points[found]
            if self._rewrite or standing.content[found] != hashes[index]:
                need.what[index] = VECTOR
            elif standing.payload[found] != payload[index]:
                need.what[index] = PAYLOAD
        self._note_gone(number, page, at, standing, empty, staying, result)
        return need

    def _note_gone(
        self,
        number: int,
        page: Page,
        at: dict[bytes, int],
        standing: Standing,
        empty: set[int],
        staying: set[bytes | None],
        result: PageDiff,
    ) -> None:
        emptied = {page.positions[index] for index in empty} - staying
        kept = (set(page.positions) - emptied) | staying
        gone = at.keys() - kept
        if page.covers is None:
            gone &= {position for _, position in page.deleted} | emptied
        destination = self._destinations[number]
        if gone and destination is not None:
            keys = self._ledger.keys(destination, sorted(gone))
            result.gone += [Gone(number, p, key, standing.points[at[p]]) for p, key in keys.items()]

    def _standing(self, number: int, page: Page) -> Standing:
        destination = self._destinations[number]
        if page.covers is not None:
            return self._ledger.standing(destination, page.covers)
        return self._ledger.standing_of(
            destination, sorted({*page.positions, *(position for _, position in page.deleted)})
        )

    @staticmethod
    def _classify(wanted: list[int], needs: list[Need], result: PageDiff) -> None:
        for index in wanted:
            if max(need.what[index] for need in needs) == PAYLOAD:
                result.payload_changed += 1
            elif any(need.stands[index] for need in needs):
                result.changed += 1
            else:
                result.new += 1
        result.unchanged -= len(wanted)


def _work(
    page: Page,
    rows: pa.RecordBatch,
    contents: list[tuple[Content, ...]],
    hashes: list[bytes],
    needs: list[Need],
    wanted: list[int],
) -> Work:
    """`rows` and `contents` are those of `wanted`, the others all of the page. Columns of bytes stand in the contents
    already, and no payload has them."""
    rows = rows.select([field.name for field in rows.schema if not is_bytes(field.type)])
    return Work(
        [page.keys[i] for i in wanted],
        [page.positions[i] for i in wanted],
        contents,
        [hashes[i] for i in wanted],
        rows,
        [
            Need([n.payload[i] for i in wanted], [n.what[i] for i in wanted], [n.stands[i] for i in wanted])
            for n in needs
        ],
    )
