"""Which rows a run takes: all of them, or those that its source has queued; and what becomes of the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from seedbed.diff import PageDiff
from seedbed.ledger import State
from seedbed.protocols import Feed, Page, Selection

if TYPE_CHECKING:
    from seedbed.session import Session


class Taking:
    """A run's dealings with a queue. Where nothing is queued, or the run reads all rows, most of it does nothing.
    `partly`: the run reads what is queued, beside other runs that do the same."""

    def __init__(self, feed: Feed | None, *, all_rows: bool) -> None:
        self._feed = feed
        self.partly = feed is not None and not all_rows

    @classmethod
    def of(cls, session: Session, state: State, *, narrowed: bool, full: bool) -> Taking:
        """All rows are read at first, under another subscription or recipe, and where a change concerns them all."""
        if session.declaration.source.changes != "queue" or narrowed:
            return cls(None, all_rows=True)
        feed = session.feed
        known = state == State(session.recipe.fingerprint, feed.marker)
        return cls(feed, all_rows=feed.all_rows() or full or not known)

    @property
    def _taken(self) -> Feed | None:
        return self._feed if self.partly else None

    def pages(self, selection: Selection, read: Callable[[Selection], Iterator[Page]]) -> Iterator[Page]:
        return self._taken.pages(selection, read) if self._taken else read(selection)

    def put_back(self, keys: Iterable[str]) -> None:
        """Rows that failed or were left in doubt go into the queue again, where workers share them."""
        if self._taken:
            self._taken.put(sorted(set(keys)))

    def check(self, keys: Sequence[str]) -> None:
        """Before a store is written. Raises Transient where others may have taken these rows."""
        if self._taken:
            self._taken.check(keys)

    def worked_off(self, keys: Iterable[str]) -> None:
        if self._taken:
            self._taken.finish(sorted(keys))

    def known_until_done(self, watermark: str | None) -> str | None:
        """What the ledger says while the run goes on. Until all rows are seen, none are known to be done: a run that is
        cut short begins at the first one again."""
        return None if self._feed and not self.partly else watermark

    def all_seen(self) -> str | None:
        """Once a run has read all rows: what the ledger says from then on, so that the next takes the queue."""
        if self._feed is None or self.partly:
            return None
        self._feed.finish_all_rows()
        return self._feed.marker

    @property
    def upto(self) -> int | None:
        """Up to which change a reading of all rows settles the queue, for `settle` by another process."""
        return None if self._feed is None or self.partly else self._feed.upto

    @staticmethod
    def settle(feed: Feed, upto: int) -> str:
        """All rows were read since `upto`; what the ledger says from then on."""
        feed.upto = upto
        feed.finish_all_rows()
        return feed.marker

    def release(self) -> None:
        if self._feed:
            self._feed.release()


def unwritten(page: Page, found: PageDiff) -> set[str]:
    """The keys of a page that need nothing of a store: worked off as soon as that is known."""
    waits = {*(found.work.keys if found.work else ()), *(gone.key for gone in found.gone)}
    return {*page.keys, *page.failed, *(key for key, _ in page.deleted)} - waits
