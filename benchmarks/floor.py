"""The floor for `sync`: the least that reads rows, hashes, embeds, upserts and remembers, written by hand.

Binary COPY out, SHA-256, the same `hash:` call, COPY into a temporary table and INSERT … ON CONFLICT, and a
table of hashes beside it. No checks, no chunks, no recovery from a crash, one database, one column.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

import numpy as np
import psycopg

from seedbed.content import Content
from seedbed.protocols import Embedder

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
BATCH = 1000


def prepare(connection: psycopg.Connection, dimensions: int) -> None:
    connection.execute("create extension if not exists vector")
    connection.execute("drop table if exists floor_vectors, floor_hashes")
    connection.execute(f"create table floor_vectors (id bigint primary key, v vector({dimensions}))")
    connection.execute("create table floor_hashes (id bigint primary key, hash bytea)")


def run(connection: psycopg.Connection, embedder: Embedder, table: str) -> int:
    """One incremental pass; how many rows were embedded."""
    known: dict[int, bytes] = dict(connection.execute("select id, hash from floor_hashes", binary=True).fetchall())
    ids: list[int] = []
    texts: list[bytes] = []
    hashes: list[bytes] = []
    seen: set[int] = set()
    for number, text in _rows(connection, table):
        seen.add(number)
        digest = hashlib.sha256(text).digest()
        if known.get(number) != digest:
            ids.append(number)
            texts.append(text)
            hashes.append(digest)
    for start in range(0, len(ids), BATCH):
        part = slice(start, start + BATCH)
        vectors = embedder.embed([Content.of(text.decode()) for text in texts[part]])
        _upsert(connection, ids[part], vectors, hashes[part])
    gone = [number for number in known if number not in seen]
    if gone:
        connection.execute("delete from floor_vectors where id = any(%s)", [gone])
        connection.execute("delete from floor_hashes where id = any(%s)", [gone])
    return len(ids)


def _rows(connection: psycopg.Connection, table: str) -> Iterator[tuple[int, bytes]]:
    with (
        connection.cursor() as cursor,
        cursor.copy(f"copy (select id, body from {table}) to stdout (format binary)") as out,
    ):
        data = b"".join(bytes(block) for block in out)
    at = 19
    while data[at : at + 2] != b"\xff\xff":
        _, _, number, length = struct.unpack_from(">hiqi", data, at)
        at += 18
        yield number, data[at : at + length]
        at += length


def _upsert(connection: psycopg.Connection, ids: list[int], vectors: np.ndarray, hashes: list[bytes]) -> None:
    count, dimensions = vectors.shape
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("create temporary table part (id bigint, v vector, hash bytea) on commit drop")
        record = np.dtype(
            [("n", ">i2"), ("l1", ">i4"), ("id", ">i8"), ("l2", ">i4"), ("d", ">i2"), ("z", ">i2"),
             ("v", ">f4", (dimensions,)), ("l3", ">i4"), ("h", "V32")]
        )  # fmt: skip
        rows = np.zeros(count, record)
        rows["n"], rows["l1"], rows["l2"], rows["l3"] = 3, 8, 4 + 4 * dimensions, 32
        rows["id"], rows["d"], rows["v"] = ids, dimensions, vectors
        rows["h"] = np.frombuffer(b"".join(hashes), "V32")
        with cursor.copy("copy part from stdin (format binary)") as copy:
            copy.write(_HEADER + rows.tobytes() + b"\xff\xff")
        cursor.execute("insert into floor_vectors select id, v from part on conflict (id) do update set v = excluded.v")
        cursor.execute(
            "insert into floor_hashes select id, hash from part on conflict (id) do update set hash = excluded.hash"
        )
