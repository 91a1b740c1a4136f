"""What every source must do, asked of each kind against the real thing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from seedbed.errors import ConfigError
from seedbed.identity import KeyRange, encode_key, key_parts, position
from seedbed.protocols import Page, Selection, Source
from seedbed.sources.paging import parts_of
from sources.backends import BACKENDS, World, column_of, keys_of, read, world


@pytest.fixture(params=BACKENDS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with world(request.param, tmp_path) as made:
        yield made


def numbered(count: int) -> pa.Table:
    ids = list(range(-count // 2, count - count // 2))
    random.Random(7).shuffle(ids)
    return pa.table({"id": pa.array(ids, pa.int64()), "title": [f"t{number}" for number in ids]})


def check_order(source: Source, pages: list[Page]) -> None:
    """Positions are those of identity, strictly ascending, and the pages cover the source without a gap."""
    kinds = source.key_kinds
    positions = [at for page in pages for at in page.positions]
    assert positions == sorted(set(positions))
    assert positions == [position(key_parts(key), kinds) for key in keys_of(pages)]
    assert [parts_of(at, kinds) for at in positions] == [key_parts(key) for key in keys_of(pages)]
    for before, after in pairwise(pages):
        assert before.covers is not None
        assert after.covers is not None
        assert before.covers.upto == after.covers.after
    for page in pages:
        assert page.covers is not None
        touched = page.positions + [at for at, _ in page.failed.values() if at is not None]
        assert all(page.covers.after is None or page.covers.after < at for at in page.positions)
        assert all(page.covers.upto is None or at <= page.covers.upto for at in touched)


@pytest.mark.parametrize("page_rows", [1, 10, 25, 26, 1000])
def test_pages_cover_all_rows_in_order(make: World, page_rows: int) -> None:
    source = make.source(numbered(50), ["id"])
    pages = read(source, "title", page_rows=page_rows)
    check_order(source, pages)
    assert sorted(keys_of(pages)) == sorted(encode_key([str(number)]) for number in range(-25, 25))
    assert column_of(pages, "title") == [f"t{key_parts(key)[0]}" for key in keys_of(pages)]
    assert pages[0].covers is not None
    assert pages[0].covers.after is None
    assert pages[-1].covers is not None
    assert pages[-1].covers.upto is None
    assert max(len(page.keys) for page in pages) <= page_rows


def test_unicode_and_awkward_text_keys(make: World) -> None:
    awkward = ["a", "B", "é", "中", "😀", "z z", 'quo"te', "back\\slash", "per%cent", "it's", "tab\there", "{b}", "\\N"]
    source = make.source(pa.table({"id": awkward, "title": awkward}), ["id"])
    pages = read(source, "title", page_rows=3)
    check_order(source, pages)
    assert column_of(pages, "title") == sorted(awkward, key=str.encode)
    assert keys_of(read(source, keys=[encode_key([key]) for key in awkward])) == keys_of(pages)


def test_composite_keys(make: World) -> None:
    rows = [(shop, number) for shop in ("a", "ab", "b", "é") for number in (-3, 2, 10)]
    random.Random(1).shuffle(rows)
    table = pa.table({"shop": [shop for shop, _ in rows], "number": [number for _, number in rows]})
    source = make.source(table, ["shop", "number"])
    assert source.key_columns == ("shop", "number")
    pages = read(source, "number", page_rows=5)
    check_order(source, pages)
    assert sorted(keys_of(pages)) == sorted(encode_key([shop, str(number)]) for shop, number in rows)
    wanted = [encode_key(["ab", "-3"]), encode_key(["b", "10"]), encode_key(["b", "11"])]
    assert sorted(keys_of(read(source, keys=wanted))) == sorted(wanted[:2])


def test_within_reads_a_range_and_covers_it(make: World) -> None:
    source = make.source(numbered(40), ["id"])
    whole = [at for page in read(source) for at in page.positions]
    ranges = [KeyRange(None, whole[9]), KeyRange(whole[9], whole[25]), KeyRange(whole[25], None)]
    read_by_range = [read(source, page_rows=4, within=within) for within in ranges]
    assert [at for pages in read_by_range for page in pages for at in page.positions] == whole
    for within, pages in zip(ranges, read_by_range, strict=True):
        assert pages[0].covers is not None
        assert pages[0].covers.after == within.after
        assert pages[-1].covers is not None
        assert pages[-1].covers.upto == within.upto


def test_keys_and_where_conclude_nothing(make: World) -> None:
    source = make.source(numbered(40), ["id"])
    by_key = read(source, "title", keys=[encode_key(["3"]), encode_key(["-3"]), encode_key(["99"])])
    assert sorted(keys_of(by_key)) == ['["-3"]', '["3"]']
    by_condition = read(source, "title", where="title = 't5' -- or else")
    assert keys_of(by_condition) == ['["5"]']
    assert {page.covers for page in by_key + by_condition} == {None}


def test_keys_of_another_width_are_refused(make: World) -> None:
    source = make.source(numbered(4), ["id"])
    with pytest.raises(ConfigError, match="parts"):
        read(source, keys=[encode_key(["1", "2"])])


def test_declared_where_narrows_what_the_source_is(make: World) -> None:
    source = make.source(numbered(40), ["id"], where="title IN ('t1', 't2')")
    pages = read(source, "title")
    assert column_of(pages, "title") == ["t1", "t2"]
    assert [page.covers for page in pages] == [KeyRange()]


def test_an_empty_source_covers_all(make: World) -> None:
    rows = numbered(3) if make.kind == "jsonl" else numbered(3).slice(0, 0)
    source = make.source(rows, ["id"], where="title = 'none'" if make.kind == "jsonl" else None)
    (page,) = read(source, "title")
    assert (page.keys, page.positions, page.failed, page.covers) == ([], [], {}, KeyRange())
    assert page.rows.schema.names == ["title"]


@pytest.mark.parametrize("page_rows", [1, 2, 3, 4, 5, 100])
def test_null_and_duplicate_keys_fail_and_the_others_land(make: World, page_rows: int) -> None:
    ids = [1, 2, 2, 2, 3, 4, 4, None, None, 5]
    random.Random(page_rows).shuffle(ids)
    rows = pa.table({"id": pa.array(ids, pa.int64()), "title": [f"t{number}" for number in ids]})
    source = make.source(rows, ["id"], unique=False)
    pages = read(source, "title", page_rows=page_rows)
    check_order(source, pages)
    assert keys_of(pages) == ['["1"]', '["3"]', '["5"]']
    failed = [(key, at, reason) for page in pages for key, (at, reason) in page.failed.items()]
    known = {key: at for key, at, _ in failed if at is not None}
    assert known == {encode_key([part]): position([part], source.key_kinds) for part in ("2", "4")}
    assert sum("NULL" in reason for _, _, reason in failed) == 2
    assert len(failed) == 4
    assert len({key for key, _, _ in failed}) == 4


def test_soft_deleted_rows_are_said_to_be_deleted(make: World) -> None:
    # 3 was deleted and came again: it lives. 4 lives twice: it fails.
    ids = [1, 2, 3, 3, 4, 4, 5]
    flags = [False, True, True, False, False, False, True]
    rows = pa.table({"id": ids, "title": [f"t{number}" for number in ids], "is_deleted": flags})
    source = make.source(rows, ["id"], unique=False, deleted="is_deleted")
    for page_rows in (1, 2, 3, 100):
        pages = read(source, "title", page_rows=page_rows)
        check_order(source, pages)
        assert keys_of(pages) == ['["1"]', '["3"]']
        assert [key for page in pages for key, _ in page.deleted] == ['["2"]', '["5"]']
        assert [key for page in pages for key in page.failed] == ['["4"]']


def test_types_and_nulls(make: World) -> None:
    moment, day = datetime(2024, 2, 29, 12, 30, 0, 250000, tzinfo=UTC), date(2024, 2, 29)
    rows = pa.table(
        {
            "id": pa.array([1, 2], pa.int64()),
            "words": pa.array(['a "b"\n,c', None], pa.string()),
            "price": pa.array([1.25, None], pa.float64()),
            "count": pa.array([-7, None], pa.int64()),
            "on_sale": pa.array([True, None], pa.bool_()),
            "day": pa.array([day, None], pa.date32()),
            "moment": pa.array([moment, None], pa.timestamp("us", tz="UTC")),
        }
    )
    source = make.source(rows, ["id"])
    names = rows.schema.names[1:]
    (page,) = read(source, *names)
    assert page.rows.schema == pa.schema([source.schema().field(name) for name in names])
    first, second = page.rows.to_pylist()
    json_has_no_dates = make.kind == "jsonl"
    assert first["words"] == 'a "b"\n,c'
    assert (first["price"], first["count"], first["on_sale"]) == (1.25, -7, True)
    assert first["day"] == (str(day) if json_has_no_dates else day)
    assert first["moment"] == (str(moment) if json_has_no_dates else moment)
    assert set(second.values()) == {None}


def test_unknown_names_are_refused_with_the_nearest(make: World) -> None:
    rows = numbered(3)
    with pytest.raises(ConfigError, match="'idd'") as wrong_key:
        read(make.source(rows, ["idd"], unique=False))
    assert "'id'" in (wrong_key.value.hint or "")
    with pytest.raises(ConfigError, match="'titel'") as wrong_column:
        read(make.source(rows, ["id"]), "titel")
    assert "'title'" in (wrong_column.value.hint or "")
    with pytest.raises(ConfigError, match="'wehre'"):
        make.source(rows, ["id"], wehre="true")
    with pytest.raises(ConfigError):
        read(make.source(rows, ["id"], where="no_such_column = 1"))


def test_a_read_can_be_left_and_begun_again(make: World) -> None:
    source = make.source(numbered(50), ["id"])
    pages = source.pages(Selection(columns=["title"], page_rows=5))
    next(pages)
    pages.close()  # type: ignore[attr-defined]
    assert len(keys_of(read(source, "title"))) == 50
