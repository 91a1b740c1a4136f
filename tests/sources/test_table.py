"""What is the files' own: formats, globs, URLs, broken lines."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedbed import registry
from seedbed.errors import ConfigError, Transient
from seedbed.identity import KeyRange, key_parts, position
from seedbed.protocols import Selection
from sources.backends import column_of, keys_of, read


def test_lines_of_a_csv_that_cannot_be_read_fail_and_nothing_counts_as_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,body\n007,a\n8,\xff\xfe\n9,"two\nlines, one ""cell"""\n10,a,b\n11\n12,\n')
    pages = read(registry.source(str(path), key="id"), "body")
    assert dict(zip(keys_of(pages), column_of(pages, "body"), strict=True)) == {
        '["007"]': "a",
        '["9"]': 'two\nlines, one "cell"',
        '["12"]': None,
    }
    reasons = [reason for page in pages for at, reason in page.failed.values() if at is None]
    assert len(reasons) == 3
    assert all(str(path) in reason for reason in reasons)
    assert "line 3" in reasons[0]
    assert "nicode" in reasons[0]
    assert [page.covers for page in pages] == [None]


def test_keys_of_text_files_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("id\tn\n007\t1\n10\t2\n9\t3\n")
    source = registry.source(str(tmp_path / "a.tsv"), key=["id"])
    assert (source.key_kinds, source.schema().field("n").type) == (("text",), pa.int64())
    assert keys_of(read(source, "n")) == ['["007"]', '["10"]', '["9"]']
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"id": 7, "at": "2024-01-01", "o": {"b": [1]}, "tags": ["x"]}\n{"id": "x"}\n')
    source = registry.source(str(tmp_path / "a.jsonl.gz"), key=["id"])
    (page,) = read(source, "at", "o", "tags")
    assert page.keys == ['["7"]', '["x"]']
    assert page.rows.to_pylist()[0] == {"at": "2024-01-01", "o": '{"b":[1]}', "tags": ["x"]}


def test_a_broken_line_of_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1}\n{"id": 2\n{"id": 3}\n')
    with pytest.raises(ConfigError, match=r"a\.jsonl.*line") as raised:
        read(registry.source(str(path), key=["id"]))
    assert raised.value.hint


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (pa.int8(), [-1, 3]),
        (pa.uint32(), [0, 2**32 - 1]),
        (pa.uint64(), [10, 9]),
        (pa.decimal128(9, 2), [Decimal("-1.50"), Decimal("10.00"), Decimal("9.00")]),
        (pa.binary(), [b"\xff", b"\x00", b""]),
        (pa.date32(), [datetime(987, 1, 2), datetime(2024, 1, 1)]),
        (pa.timestamp("ms"), [datetime(987, 1, 2), datetime(2024, 1, 1)]),
        (pa.timestamp("ns", tz="Asia/Tokyo"), [datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)]),
        (pa.bool_(), [True, False]),
        (pa.large_string(), ["b", "é", "a", "Z"]),
        (pa.dictionary(pa.int8(), pa.string()), ["b", "a"]),
    ],
)
def test_parquet_keys_of_each_type(tmp_path: Path, type_: pa.DataType, values: list[Any]) -> None:
    rows = pa.table({"id": pa.array(values, type_), "n": [1] * len(values)})
    pq.write_table(rows, tmp_path / "a.parquet")
    source = registry.source(str(tmp_path / "a.parquet"), key=["id", "n"])
    pages = read(source, "n", page_rows=1)
    positions = [at for page in pages for at in page.positions]
    assert len(positions) == len(values)
    assert positions == sorted(position(key_parts(key), source.key_kinds) for key in keys_of(pages))
    assert keys_of(read(source, keys=keys_of(pages))) == keys_of(pages)
    assert keys_of(read(source, within=KeyRange(positions[0], positions[1]))) == keys_of(pages)[1:2]
    assert source.estimate() == len(values)


def test_a_glob_and_an_fsspec_url(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.csv").write_text(f"id,n\n{number},{number}\n")
    assert len(keys_of(read(registry.source(str(tmp_path / "*.csv"), key=["id"])))) == 3
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.jsonl", b'{"id": 2}\n{"id": 1}\n')
    memory.pipe("/bucket/b.jsonl", b'{"id": 3}\n')
    try:
        assert keys_of(read(registry.source("memory://bucket/*.jsonl", key=["id"]))) == ['["1"]', '["2"]', '["3"]']
    finally:
        memory.rm("/bucket", recursive=True)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    def refused(url: str, **settings: Any) -> ConfigError:
        with pytest.raises(ConfigError) as raised:
            read(registry.source(url, **settings))
        return raised.value

    assert "nothing.csv" in refused(str(tmp_path / "nothing.csv"), key=["id"]).message
    assert "no source" in refused(str(tmp_path / "a.xlsx"), key=["id"]).message
    (tmp_path / "a.csv").write_text("id,body\n1,a\n")
    here = str(tmp_path / "a.csv")
    assert refused(here).setting == "source.key"
    assert refused(here, key=["id"], table="t").setting == "source.table"
    assert refused(here, key=["id"], where="bdy = 'a'").setting == "source.where"
    assert refused(here, key=["id"], changes="watermark", watermark="at").setting == "source.watermark"
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    assert "a.parquet" in refused(str(tmp_path / "a.parquet"), key=["id"]).message
    pq.write_table(pa.table({"id": [1.5]}), tmp_path / "f.parquet")
    assert refused(str(tmp_path / "f.parquet"), key=["id"]).setting == "source.key"


def test_a_file_that_changes_under_the_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seedbed.sources.table_read import TableRead

    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": number}) + "\n" for number in range(10)))
    sort = TableRead.sort_into

    def sort_and_append(read: TableRead, spool: Path) -> list[tuple[str, str]]:
        rejected = sort(read, spool)
        path.write_text('{"id": 1}\n')
        return rejected

    monkeypatch.setattr(TableRead, "sort_into", sort_and_append)
    with pytest.raises(Transient, match="changed while"):
        read(registry.source(str(path), key=["id"]))


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "a.csv").write_text("id,body\n1,a\n2,b\n")
    source = registry.source(str(tmp_path / "a.csv"), key=["id"])
    pages = source.pages(Selection(columns=["body"], page_rows=1))
    next(pages)
    assert list((tmp_path / "scratch").iterdir())
    pages.close()  # type: ignore[attr-defined]
    source.close()
    assert list((tmp_path / "scratch").iterdir()) == []
