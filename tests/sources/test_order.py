"""For any keys, a source's order is the order of positions, and the fast ways equal identity's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seedbed import registry
from seedbed.identity import encode_key, position
from seedbed.sources.paging import encode_keys, parts_of
from services.postgres import fresh_database
from sources.backends import World, keys_of, read

INTS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.text('\0aé"\\\x01', max_size=4)
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@given(st.lists(st.tuples(TEXTS, INTS, TEXTS), max_size=8))
def test_keys_and_positions_equal_those_of_identity(rows: list[tuple[str, int, str]]) -> None:
    for numbers in ([0], [1], [0, 1], [1, 2], [0, 2], [0, 1, 2]):
        kinds = [("text", "int", "text")[number] for number in numbers]
        types = [(pa.string(), pa.int64(), pa.string())[number] for number in numbers]
        columns = [pa.array([row[n] for row in rows], t) for n, t in zip(numbers, types, strict=True)]
        parts = [[str(row[number]) for number in numbers] for row in rows]
        keys, positions = encode_keys(columns)
        assert keys == [encode_key(row) for row in parts]
        assert positions == [position(row, kinds) for row in parts]
        assert [parts_of(at, kinds) for at in positions] == parts


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with fresh_database("18") as url:
        yield url


@QUICK
@given(st.sets(st.tuples(TEXTS.map(lambda text: text.replace("\0", "")), INTS), max_size=12), st.integers(1, 5))
def test_postgres_orders_as_positions(
    database: str, tmp_path_factory: pytest.TempPathFactory, rows: set[tuple[str, int]], page_rows: int
) -> None:
    for kind in ("table", "query"):
        made = World(kind, tmp_path_factory.getbasetemp(), database)
        table = pa.table(
            {"t": pa.array([t for t, _ in rows], pa.string()), "n": pa.array([n for _, n in rows], pa.int64())}
        )
        for key in (["t", "n"], ["n", "t"]):
            source = made.source(table, key)
            pages = read(source, page_rows=page_rows)
            positions = [at for page in pages for at in page.positions]
            ordered = [[str({"t": t, "n": n}[name]) for name in key] for t, n in rows]
            assert positions == sorted(position(parts, source.key_kinds) for parts in ordered)
            assert keys_of(read(source, keys=keys_of(pages))) == keys_of(pages)
        made.close()


@QUICK
@given(st.sets(st.tuples(TEXTS, INTS), max_size=12), st.integers(1, 5))
def test_files_order_as_positions(
    tmp_path_factory: pytest.TempPathFactory, rows: set[tuple[str, int]], page_rows: int
) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "rows.parquet"
    pq.write_table(
        pa.table({"t": pa.array([t for t, _ in rows], pa.string()), "n": pa.array([n for _, n in rows], pa.int64())}),
        path,
    )
    for key in (["t", "n"], ["n", "t"]):
        source = registry.source(str(path), key=key)
        pages = read(source, page_rows=page_rows)
        positions = [at for page in pages for at in page.positions]
        ordered = [[str({"t": t, "n": n}[name]) for name in key] for t, n in rows]
        assert positions == sorted(position(parts, source.key_kinds) for parts in ordered)
        assert keys_of(read(source, keys=keys_of(pages))) == keys_of(pages)
        source.close()
