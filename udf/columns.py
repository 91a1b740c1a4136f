"""`CALL seedbed.work()`: embeds what is queued for self-embedding columns, a batch at a time.

A batch is leased and read in one transaction, embedded in none, and stored in another: only rows whose change is still
the one that was taken. `udf` is the module of the functions, which asks the embedding server.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

LEASE = "2 minutes"
TRIES = 10
"""To give back changes that writers hold; most hold them for milliseconds. The others come back with their leases."""
SWEEPS = 5
"""Over what was taken but held by others just then; what is left after them is left for the next call."""
CANCELLED = "57014"
CONTENT_REFUSED = ("22000", "22023", "54000")
"""SQLSTATEs of an answer that is about what was asked, not about the server."""


class Row(NamedTuple):
    key: str
    seq: int
    content: Any
    hash: bytes


class Done(NamedTuple):
    """Vectors' bytes, or why there is none, of rows."""

    rows: list[Row]
    vectors: list[bytes | None]
    errors: list[str | None]


def work(plpy: Any, GD: dict[str, Any], udf: Any, max_rows: int, batch: int) -> int:
    """Rows that were worked off. Raises by plpy.error where a server cannot be reached, and where it serves another
    model than a column was made with, which marks the column stale."""
    if max_rows < 1 or not 1 <= batch <= 2048:
        plpy.error(f"max_rows {max_rows}, batch {batch}", hint="max_rows from 1, batch 1 to 2048", sqlstate="22023")
    before = plpy.execute("SELECT pg_catalog.current_setting('search_path') AS path")[0]["path"]
    _set_path(plpy, "pg_catalog, pg_temp")  # the statements' functions must not be anybody else's of the same name
    try:
        return _work(plpy, GD, udf, max_rows, batch)
    finally:
        plpy.rollback()
        _set_path(plpy, before)


def _set_path(plpy: Any, path: str) -> None:
    plpy.execute(plpy.prepare("SELECT pg_catalog.set_config('search_path', $1, false)", ["text"]), [path])
    plpy.commit()


def _work(plpy: Any, GD: dict[str, Any], udf: Any, max_rows: int, batch: int) -> int:
    """A column that cannot be worked on does not stop the others; the first error is raised at the end."""
    done, first = 0, None
    statement = "SELECT * FROM seedbed._column_to_work($1, $2)"
    for named in list(plpy.execute("SELECT * FROM seedbed._columns_to_work()")):
        try:
            for column in plpy.execute(plpy.prepare(statement, ["text", "text"]), [named["relation"], named["name"]]):
                done += _Column(plpy, GD, udf, column).work(max_rows - done, batch)
        except plpy.Error as error:
            if getattr(error, "sqlstate", None) == CANCELLED:
                raise
            plpy.rollback()
            first = first or error
        if done >= max_rows:
            break
    if first is not None:
        raise first
    return done


class _Column:
    def __init__(self, plpy: Any, GD: dict[str, Any], udf: Any, column: Any) -> None:
        self._plpy, self._GD, self._udf, self._column = plpy, GD, udf, column
        self._watcher = column["watcher"]
        me = plpy.execute("SELECT pg_backend_pid() || ' ' || gen_random_uuid() AS me, seedbed_queue.newest() AS upto")
        self._me, self._upto = me[0]["me"], me[0]["upto"]
        self._place = udf.endpoint(plpy, column["endpoint"])

    def _run(self, statement: str, types: list[str], values: list[Any]) -> Any:
        return self._plpy.execute(self._plpy.prepare(statement, types), values)

    def work(self, max_rows: int, batch: int) -> int:
        self._refill()
        done = 0
        try:
            for _ in range(SWEEPS):
                swept, left = self._sweep(max_rows - done, batch)
                done += swept
                if not left or done >= max_rows:
                    break
                self._release()
            if done < max_rows:
                self._index()
        except BaseException:
            self._plpy.rollback()
            self._release()
            raise
        self._release()
        return done

    def _sweep(self, max_rows: int, batch: int) -> tuple[int, bool]:
        """Rows that were worked off, and whether some were taken that somebody held just then."""
        done, left, after = 0, False, ""
        while done < max_rows and (taken := self._take(after, min(batch, max_rows - done))):
            after = max(taken, key=str.encode)
            finished = self._batch(taken)
            done += finished
            left = left or finished < len(taken)
        return done, left

    def _release(self) -> None:
        """What could not be done, and what changed again while it was: for the next to take at once."""
        for _ in range(TRIES):
            statement = "SELECT seedbed_queue.release($1, $2) AS held"
            held = self._run(statement, ["bigint", "text"], [self._watcher, self._me])[0]["held"]
            self._plpy.commit()
            if not held:
                break
            time.sleep(0.02)

    def _refill(self) -> None:
        """The empty key stands for all rows: the table was truncated, or has lost a column."""
        statement = f"SELECT seedbed_queue.take_all_rows($1, $2, '{LEASE}'::interval) AS taken"
        if self._run(statement, ["bigint", "text"], [self._watcher, self._me])[0]["taken"]:
            self._plpy.execute(self._column["orphans"])
            self._run("SELECT seedbed_queue.put_all($1)", ["bigint"], [self._watcher])
            self._run("SELECT seedbed_queue.finish_all_rows($1, $2)", ["bigint", "bigint"], [self._watcher, self._upto])
            self._upto = self._plpy.execute("SELECT seedbed_queue.newest() AS upto")[0]["upto"]
        self._plpy.commit()

    def _take(self, after: str, most: int) -> dict[str, int]:
        found = self._run(
            f"SELECT key, seq FROM seedbed_queue.take($1, $2, $3, $4, $5, '{LEASE}'::interval)",
            ["bigint", "text", "text", "bigint", "integer"],
            [self._watcher, self._me, after, self._upto, most],
        )
        return {row["key"]: row["seq"] for row in found}

    def _batch(self, taken: dict[str, int]) -> int:
        """How many of them are done."""
        # A statement of its own: what is read must not be older than what was taken.
        read = list(self._run(self._column["read"], ["text[]"], [list(taken)]))
        gone = {row["key"]: taken[row["key"]] for row in read if not row["there"]}
        wanted = [row for row in read if row["there"] and not row["same"]]
        rows = [Row(row["key"], taken[row["key"]], self._content(row), row["hash"]) for row in wanted]
        self._plpy.commit()
        done = self._embed([row for row in rows if row.content is not None])
        finished = self._store(done, [row for row in rows if row.content is None], gone)
        finished += self._finish([row["key"] for row in read if row["same"]])
        self._plpy.commit()
        return finished

    def _content(self, row: Any) -> Any:
        """A text, or parts; None where there is nothing to embed."""
        text, image = row["text"], row["image"]
        if not image:
            return text or None
        url = image.decode() if self._column["picture"] == "url" else self._udf.data_url(image)
        return self._udf.parts_of(self._plpy, {"text": text, "image": url} if text else {"image": url})

    def _embed(self, rows: list[Row]) -> Done:
        """Halves what is refused, until the row that is meant stands alone. No transaction is open meanwhile."""
        if not rows:
            return Done([], [], [])
        try:
            answered = self._udf.ask(
                self._plpy,
                self._GD,
                self._place,
                [row.content for row in rows],
                "document",
            )
        except self._plpy.Error as error:
            if error.sqlstate not in CONTENT_REFUSED:
                raise
            if len(rows) == 1:
                return Done(rows, [None], [str(error)])
            middle = len(rows) // 2
            first, second = self._embed(rows[:middle]), self._embed(rows[middle:])
            return Done(first.rows + second.rows, first.vectors + second.vectors, first.errors + second.errors)
        self._check(answered)
        size = 4 * answered.dimensions
        vectors = [answered.payload[start : start + size] for start in range(0, size * len(rows), size)]
        return Done(rows, [*vectors], [None] * len(rows))

    def _check(self, answered: Any) -> None:
        """One column holds one space."""
        column, same = self._column, answered.space == self._column["space"]
        if same and not column["stale"]:
            return
        found = None if same else answered.space
        self._run(
            "SELECT seedbed._stale($1, $2, $3)", ["text", "text", "text"], [column["relation"], column["name"], found]
        )
        self._plpy.commit()
        if not same:
            self._plpy.error(
                f"the column {column['name']} of {column['relation']} was made with another model than endpoint "
                f'"{column["endpoint"]}" serves now',
                hint="make a new column beside it, SELECT seedbed.embed_column(..., name => 'another'), and drop this "
                "one once that is filled; or serve the model of before",
                sqlstate="55000",
            )

    def _store(self, done: Done, empty: list[Row], gone: dict[str, int]) -> int:
        """Rows whose change is still the one that was taken; of the others the newer change will be worked off."""
        rows = [*done.rows, *empty]
        vectors: list[bytes | None] = [*done.vectors, *(None for _ in empty)]
        errors: list[str | None] = [*done.errors, *(None for _ in empty)]
        free = self._free([row.key for row in rows])
        mine = self._mine({row.key: row.seq for row in rows if row.key in free} | gone)
        kept = [number for number, row in enumerate(rows) if row.key in mine]
        keys = [rows[number].key for number in kept]
        if keys:
            values = [keys, [vectors[n] for n in kept], [rows[n].hash for n in kept], [errors[n] for n in kept]]
            self._run(self._column["store"], ["text[]", "bytea[]", "bytea[]", "text[]"], values)
            if self._column["inlined"]:
                self._run(self._column["inlined"], ["text[]", "bytea[]"], values[:2])
        dropped = [key for key in gone if key in mine]
        if dropped:
            self._run(self._column["drop"], ["text[]"], [dropped])
        return self._finish(keys + dropped)

    def _free(self, keys: list[str]) -> set[str]:
        """Of rows that are to be written themselves, those that no writer holds: they are held from now on."""
        if not self._column["locked"]:
            return set(keys)
        return {row["key"] for row in self._run(self._column["locked"], ["text[]"], [keys])}

    def _mine(self, changes: dict[str, int]) -> set[str]:
        """Held, so that a newer change waits until this is stored and then follows it. One that a writer holds now is
        about to be newer."""
        found = self._run(
            "SELECT c.key FROM unnest($2::text[], $3::bigint[]) AS u(key, seq) JOIN seedbed_queue.change c"
            " ON c.subscription_id = $1 AND c.key = u.key AND c.seq = u.seq AND c.lease_owner = $4"
            " ORDER BY 1 FOR UPDATE OF c SKIP LOCKED",
            ["bigint", "text[]", "bigint[]", "text"],
            [self._watcher, list(changes), list(changes.values()), self._me],
        )
        return {row["key"] for row in found}

    def _finish(self, keys: list[str]) -> int:
        if not keys:
            return 0
        found = self._run(
            "SELECT seedbed_queue.finish($1, $2, $3, $4) AS count",
            ["bigint", "text", "text[]", "bigint"],
            [self._watcher, self._me, keys, self._upto],
        )
        return int(found[0]["count"])

    def _index(self) -> None:
        names = [self._column["relation"], self._column["name"]]
        self._run("SELECT seedbed._build_index($1, $2)", ["text", "text"], names)
        self._plpy.commit()
