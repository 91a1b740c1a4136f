"""Files as rows: locally, and in S3 as moto's server speaks it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from seedbed import Pipeline, registry
from seedbed.errors import ConfigError, Fatal, Transient
from seedbed.protocols import Page, Selection, Source

ALL = ["path", "size", "mtime", "etag", "mime", "content"]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder with files, folders and things that are neither."""
    root = tmp_path / "notes"
    for path, text in (("a.md", "alpha"), ("sub/b.md", "béta"), ("sub/deep/c.txt", "gamma"), ("Z.md", "zeta")):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
        os.utime(root / path, (1_700_000_000, 1_700_000_000.5))
    return root


def read(source: Source, **selection: Any) -> list[dict[str, Any]]:
    """Every row as it would be written: whole, with why it cannot be had where it cannot."""
    found = []
    for page in source.pages(Selection(columns=ALL, **selection)):
        rows, missing = source.fetch(page, range(len(page.keys)))  # type: ignore[attr-defined]
        found += [{**row, "missing": missing.get(number, "")} for number, row in enumerate(rows.to_pylist())]
    return found


def paths(source: Source, **selection: Any) -> list[str]:
    return [row["path"] for row in read(source, **selection)]


def failed(source: Source) -> dict[str, Any]:
    return {key: why for page in source.pages(Selection(columns=ALL)) for key, why in page.failed.items()}


def test_files_are_rows_in_the_order_of_their_paths(notes: Path) -> None:
    source = registry.source(f"files:{notes}")
    rows = read(source, page_rows=2)
    assert [row["path"] for row in rows] == ["Z.md", "a.md", "sub/b.md", "sub/deep/c.txt"]
    assert [row["content"] for row in rows] == ["zeta", "alpha", "béta", "gamma"]
    assert rows[2]["size"] == 5
    assert rows[2]["mime"] == "text/markdown"
    assert rows[2]["mtime"].isoformat() == "2023-11-14T22:13:20.500000+00:00"
    pages = list(source.pages(Selection(columns=["path"], page_rows=3)))
    assert [page.keys for page in pages] == [['["Z.md"]', '["a.md"]', '["sub/b.md"]'], ['["sub/deep/c.txt"]']]
    first, last = pages[0].covers, pages[-1].covers
    assert first is not None
    assert last is not None
    assert first.after is None
    assert last.upto is None


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.md", ["Z.md", "a.md"]),
        ("**/*.md", ["Z.md", "a.md", "sub/b.md"]),
        ("sub/**", ["b.md", "deep/c.txt"]),
        ("[a-b].md", ["a.md"]),
        ("a.md", ["a.md"]),
        ("sub/?.md", ["b.md"]),
        ("*.pdf", []),
    ],
)
def test_patterns(notes: Path, pattern: str, found: list[str]) -> None:
    assert paths(registry.source(f"files:{notes}/{pattern}")) == found


def test_an_empty_folder_is_a_whole_page_of_nothing(tmp_path: Path) -> None:
    (page,) = registry.source(f"files:{tmp_path}").pages(Selection(columns=["path"]))
    assert page.keys == []
    assert page.covers is not None


def test_keys_choose_files(notes: Path) -> None:
    pages: list[Page] = list(
        registry.source(f"files:{notes}").pages(Selection(columns=["path"], keys=['["a.md"]', '["none"]']))
    )
    assert [key for page in pages for key in page.keys] == ['["a.md"]']
    assert pages[0].covers is None


def test_what_is_no_text_says_so(notes: Path) -> None:
    (notes / "photo.png").write_bytes(b"\x89PNG\xff")
    (notes / "bom.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    with (notes / "huge.txt").open("wb") as file:
        file.truncate(20_000_001)
    rows = {row["path"]: row for row in read(registry.source(f"files:{notes}"))}
    assert rows["photo.png"]["missing"] == "is no UTF-8 text at byte 0 (image/png)"
    assert rows["huge.txt"]["missing"] == "is larger than 20,000,000 bytes"
    assert rows["bom.txt"]["content"] == "with a mark"


def test_names_that_are_no_text_fail_and_odd_ones_do_not(notes: Path) -> None:
    (notes / "what [is] this*?.md").write_text("odd")
    (notes / os.fsdecode(b"\xff.md")).write_text("x")
    source = registry.source(f"files:{notes}")
    assert {row["path"]: row["content"] for row in read(source)}["what [is] this*?.md"] == "odd"
    assert [why for _, why in failed(source).values()] == ["the name of the file \\xff.md is no UTF-8"]


def test_links_out_of_the_folder_pipes_and_loops_are_not_followed(notes: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (notes / "out.txt").symlink_to(tmp_path / "secret.txt")
    (notes / "in.md").symlink_to(notes / "a.md")
    (notes / "loop").symlink_to(notes)
    (notes / "broken").symlink_to("nowhere")
    os.mkfifo(notes / "pipe")
    with socket.socket(socket.AF_UNIX) as line:
        os.chdir(notes)
        line.bind("socket")
        assert paths(registry.source(f"files:{notes}/*")) == ["Z.md", "a.md", "in.md"]


def test_a_file_that_goes_while_it_is_read_is_gone(notes: Path) -> None:
    source = registry.source(f"files:{notes}")
    (page,) = source.pages(Selection(columns=ALL))
    (notes / "a.md").unlink()
    rows, missing = source.fetch(page, [1, 0])  # type: ignore[attr-defined]
    assert missing == {1: None}
    assert rows.column("content").to_pylist() == [None, "zeta"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "files:./nowhere/**"}, "no folder"),
        ({"url": "files:nosuch://x/**"}, "nosuch"),
        ({"url": "files:.", "table": "t"}, "take no table"),
        ({"url": "files:.", "key": ["size"]}, "key of files is their path"),
        ({"url": "files:.", "changes": "watermark"}, "take no changes"),
    ],
)
def test_what_cannot_be_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        list(registry.source(settings.pop("url"), **settings).pages(Selection(columns=["path"])))
    with pytest.raises(ConfigError, match="no column 'titel'"):
        registry.source("files:.").pages(Selection(columns=["titel"]))
    with pytest.raises(ConfigError, match="take no condition"):
        registry.source("files:.").pages(Selection(columns=["path"], where="x"))


def test_a_folder_that_may_not_be_read_is_no_empty_folder(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, whom nothing is forbidden."""
    scandir = os.scandir

    def forbidding(path: Any) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    with pytest.raises(Fatal, match=r"may not be read.*deep"):
        registry.source(f"files:{notes}").pages(Selection(columns=["path"]))


# --- a pipeline -------------------------------------------------------------------------------------


def pipeline(folder: Path, url: str = "files:./notes/**", **sink: Any) -> Pipeline:
    return Pipeline(
        name="notes",
        source={"url": url},
        content={"text": "{path}\n{content}"},
        embedder={"url": "hash:32"},
        sink=[{"url": f"memory:{folder}", "payload": ["size", "mime"], **sink}],
        base=folder,
    )


@pytest.fixture
def opened(notes: Path) -> Iterator[list[str]]:
    """The files below the folder that were opened."""
    names: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event == "open" and str(arguments[0]).startswith(f"{notes}/"):
            names.append(str(arguments[0]).removeprefix(f"{notes}/"))

    active = [True]
    sys.addaudithook(note)
    yield names
    active.clear()


def test_only_what_changed_is_opened(notes: Path, tmp_path: Path, opened: list[str]) -> None:
    made = pipeline(tmp_path)
    assert made.sync().embedded == 4
    assert sorted(opened) == ["Z.md", "a.md", "sub/b.md", "sub/deep/c.txt"]
    opened.clear()
    report = made.sync()
    assert (report.read, report.embedded, report.upserted, opened) == (4, 0, 0, [])
    (notes / "a.md").write_text("other words")
    (notes / "Z.md").touch()
    (notes / "sub/b.md").unlink()
    opened.clear()
    planned = made.plan()
    assert (planned.changed, planned.deleted, sorted(opened)) == (2, 1, ["Z.md", "a.md"])
    opened.clear()
    report = made.sync(allow_deletes=True)
    assert (report.embedded, report.cached, report.upserted, report.deleted) == (1, 1, 2, 1)
    assert sorted(opened) == ["Z.md", "a.md"]
    assert [hit["id"] for hit in made.search("a.md\nother words", k=1)] == ["a.md"]
    opened.clear()
    assert made.sync().upserted == 0
    assert opened == []


def test_a_bad_file_is_tried_again_and_keeps_its_old_vector(notes: Path, tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    made.sync()
    (notes / "a.md").write_bytes(b"\xff\xfe")
    report = made.sync()
    assert (report.failed, report.exit_code, report.deleted) == (1, 3, 0)
    assert made.status()["failed"] == [{"key": "a.md", "error": "is no UTF-8 text at byte 0 (text/markdown)"}]
    assert len(made.search("alpha", k=9)) == 4
    (notes / "a.md").write_text("mended")
    assert made.sync().failed == 0
    assert made.status()["failed"] == []


def test_a_file_that_becomes_blank_loses_its_vector(notes: Path, tmp_path: Path) -> None:
    declared = pipeline(tmp_path)
    made = Pipeline(
        name="bare",
        source={"url": "files:./notes/**"},
        content={"text": "{content}"},
        embedder={"url": "hash:32"},
        sink=[{"url": f"memory:bare{tmp_path}"}],
        base=tmp_path,
    )
    made.sync()
    (notes / "a.md").write_text(" \n")
    (notes / "Z.md").write_text("")
    report = made.sync(allow_deletes=True)
    assert (report.skipped, report.deleted, report.failed) == (2, 2, 0)
    assert len(made.search("x", k=9)) == 2
    assert declared.sync().embedded == 4


# --- s3 ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in (("ENDPOINT_URL", endpoint), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "s3cret")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    made = boto3.resource("s3", endpoint_url=endpoint).Bucket("photos")
    made.create()
    for key, text in (("notes/a.md", b"alpha"), ("notes/sub/b.md", b"beta"), ("other/c.md", b"gamma")):
        made.put_object(Key=key, Body=text)
    yield made
    made.objects.all().delete()
    made.delete()


def test_a_bucket_is_a_folder(bucket: Any, tmp_path: Path) -> None:
    source = registry.source("files:s3://photos/notes/**")
    rows = read(source)
    assert [(row["path"], row["content"], row["size"]) for row in rows] == [
        ("a.md", "alpha", 5),
        ("sub/b.md", "beta", 4),
    ]
    assert rows[0]["etag"] == "2c1743a391305fbf367df8e4f069f9f9"
    assert rows[0]["mtime"].year >= 2026
    made = pipeline(tmp_path, "files:s3://photos/notes/**")
    assert made.sync().embedded == 2
    # The same bytes again are a new time and the old etag.
    bucket.put_object(Key="notes/a.md", Body=b"alpha")
    bucket.put_object(Key="notes/new.md", Body=b"new")
    report = made.sync()
    assert (report.read, report.embedded, report.upserted) == (3, 1, 1)
    bucket.Object("notes/a.md").delete()
    assert made.sync(allow_deletes=True).deleted == 1
    bucket.objects.filter(Prefix="notes/").delete()
    assert made.sync(allow_deletes=True).deleted == 2


def test_a_bucket_that_cannot_be_read_is_no_empty_bucket(
    bucket: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="nothere"):
        list(registry.source("files:s3://nothere/**").pages(Selection(columns=["path"])))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises((Transient, Fatal)) as refused:
        list(registry.source("files:s3://photos/**").pages(Selection(columns=["path"])))
    assert "s3cret" not in str(refused.value)
