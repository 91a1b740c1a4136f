"""Rows with pictures and video: what changed is read and embedded, what did not is not, and a bad one is one row."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from media.samples import picture, video
from seedbed import Pipeline, work
from seedbed.diff import Differ
from seedbed.errors import ConfigError
from seedbed.report import SyncReport
from seedbed.status import doctor
from seedbed.sync import sync
from seedbed.work import Work
from services.web import Web, serving

Make = Callable[..., Pipeline]
COUNTS = ("embedded", "cached", "upserted", "deleted", "skipped", "failed")


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as made:
        yield made


@pytest.fixture
def table(pg_url: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(pg_url, autocommit=True)
    connection.execute("create table item (id bigint primary key, title text, photo text, more text[], raw bytea)")
    return connection


@pytest.fixture
def make(pg_url: str, tmp_path: Path) -> Make:
    (tmp_path / "photos").mkdir()

    def build(**changes: Any) -> Pipeline:
        declared: dict[str, Any] = {
            "name": "items",
            "source": {"url": pg_url, "table": "item"},
            "content": {"text": "{title}", "image": "photo"},
            "embedder": {"url": "hash:32"},
            "sink": [{"url": pg_url, "collection": "item_vectors", "payload": ["title"]}],
            "media": {"roots": ["photos"], "allow_hosts": ["127.0.0.1"]},
            "base": tmp_path,
        }
        return Pipeline(**{**declared, **changes})

    return build


def counts(report: SyncReport) -> dict[str, int]:
    return {name: count for name in COUNTS if (count := getattr(report, name))}


def fill(table: psycopg.Connection[Any], *rows: tuple[Any, ...]) -> None:
    table.execute("truncate item")
    with table.cursor() as cursor:
        cursor.executemany(
            "insert into item values (%s, %s, %s, %s, %s)", [(*row, *[None] * (5 - len(row))) for row in rows]
        )


def held(table: psycopg.Connection[Any]) -> dict[str, str]:
    return dict(table.execute("select _key, _modality from item_vectors order by _key").fetchall())


def test_what_lies_in_the_web_is_downloaded_when_it_changed(
    make: Make, table: psycopg.Connection[Any], web: Web
) -> None:
    fill(table, *((n, f"title {n}", web.put(f"/{n}.png", picture(seed=n), ETag=f'"{n}"')) for n in range(1, 5)))
    assert make().plan().new == 4
    assert not any(asked.startswith("GET") for asked in web.asked)
    assert counts(make().sync()) == {"embedded": 4, "upserted": 4}
    assert sum(asked.startswith("GET") for asked in web.asked) == 4
    web.asked.clear()
    assert counts(make().sync()) == {}
    assert {asked[:4] for asked in web.asked} == {"HEAD"}
    # Another picture at the same address, and the same one under another tag.
    web.put("/1.png", picture(seed=9), ETag='"9"')
    web.put("/2.png", picture(seed=2), ETag='"other"')
    web.asked.clear()
    assert counts(make().sync()) == {"embedded": 1, "cached": 1, "upserted": 2}
    assert sorted(asked for asked in web.asked if asked.startswith("GET")) == ["GET /1.png", "GET /2.png"]


def test_a_store_that_comes_later_is_filled_without_a_download(
    make: Make, table: psycopg.Connection[Any], web: Web
) -> None:
    fill(table, *((n, f"title {n}", web.put(f"/{n}.png", picture(seed=n), ETag=f'"{n}"')) for n in range(1, 5)))
    first = make()
    first.sync()
    web.asked.clear()
    more = [
        *({"url": sink.url, "collection": sink.collection, "payload": sink.payload} for sink in first.declaration.sink)
    ]
    assert counts(make(sink=[*more, {"url": "qdrant+embedded:edge"}]).sync()) == {"cached": 4, "upserted": 4}
    assert not any(asked.startswith("GET") for asked in web.asked)


def test_bytes_paths_lists_and_data_urls(make: Make, table: psycopg.Connection[Any], tmp_path: Path) -> None:
    (tmp_path / "photos" / "a.png").write_bytes(picture(seed=1))
    (tmp_path / "photos" / "b.png").write_bytes(picture(seed=2))
    url = f"data:image/png;base64,{base64.b64encode(picture(seed=3)).decode()}"
    fill(table, (1, "x", "a.png", ["b.png", url, None]), (2, "x", url), (3, "x", None, None, picture(seed=3)))
    content = {"image": ["photo", "more", "raw"], "text": "{title}"}
    pipeline = make(content=content)
    assert counts(pipeline.sync()) == {"embedded": 2, "cached": 1, "upserted": 3}
    # The same bytes by another way are the same content.
    (vectors,) = table.execute(
        "select count(distinct vector::text) from item_vectors where _key in ('[\"2\"]', '[\"3\"]')"
    ).fetchall()
    assert vectors == (1,)
    os.utime(tmp_path / "photos" / "a.png", (1, 1))
    assert counts(make(content=content).sync()) == {
        "cached": 1,
        "upserted": 1,
    }


def test_the_order_of_the_parts_is_the_files(make: Make, table: psycopg.Connection[Any], tmp_path: Path) -> None:
    fill(table, (1, "x", None, None, picture()))
    one, other = {"text": "{title}", "image": "raw"}, {"image": "raw", "text": "{title}"}
    with make(content=one).open() as first, make(content=other).open() as second:
        assert first.recipe.fingerprint != second.recipe.fingerprint
    assert make(content=one).declaration.content[""].parts == ("text", "image")
    assert make(content=other).declaration.content[""].parts == ("image", "text")


@pytest.mark.parametrize("missing", ["skip", "fail"])
def test_a_missing_part(make: Make, table: psycopg.Connection[Any], web: Web, missing: str) -> None:
    there = web.put("/1.png", picture(), ETag='"1"')
    fill(table, (1, "a", there), (2, "b", None), (3, "c", web.url + "/none"), (4, None, there), (5, None, None))
    pipeline = make(content={"text": "{title}", "image": "photo", "missing_part": missing})
    report = pipeline.sync()
    if missing == "skip":
        assert counts(report) == {"embedded": 4, "upserted": 4, "skipped": 1}
        assert held(table) == {'["1"]': "image+text", '["2"]': "text", '["3"]': "text", '["4"]': "image"}
    else:
        assert counts(report) == {"embedded": 1, "upserted": 1, "skipped": 1, "failed": 3}
        assert report.exit_code == 3
        errors = {failed["key"]: failed["error"] for failed in pipeline.status()["failed"]}
        assert errors["2"] == "its image is missing: photo is empty"
        assert "nothing there (status 404)" in errors["3"]
        assert errors["4"] == "its text is missing"


def test_a_row_whose_picture_cannot_be_had_keeps_its_old_vector(
    make: Make, table: psycopg.Connection[Any], web: Web, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    good = web.put("/1.png", picture(), ETag='"1"')
    fill(table, (1, "a", good), (2, "b", good))
    make().sync()
    bad = {
        1: "http://169.254.169.254/latest/meta-data",
        3: "../secret.png",
        4: "data:image/png;base64,###",
        5: "file:///etc/passwd",
        6: web.put("/down", b"", 403),
    }
    fill(table, (2, "b", good), *((number, "x", place) for number, place in bad.items()))
    report = make().sync()
    assert (report.failed, report.deleted, report.exit_code) == (5, 0, 3)
    assert held(table) == {'["1"]': "image+text", '["2"]': "image+text"}
    errors = {failed["key"]: failed["error"] for failed in make().status()["failed"]}
    assert "no public address" in errors["1"]
    assert "roots" in errors["3"]
    assert "no base64" in errors["4"]
    assert "roots" in errors["5"]
    assert "status 403" in errors["6"]


def test_a_picture_that_goes_between_the_look_and_the_download(
    make: Make, table: psycopg.Connection[Any], web: Web
) -> None:
    fill(table, (1, "a", web.url + "/1.png"), (2, "b", web.url + "/2.png"))
    web.put("/2.png", picture(), ETag='"2"')
    web.answers["/1.png"] = lambda request: request.say(200 if request.command == "HEAD" else 404, b"", ETag='"1"')
    assert counts(make().sync()) == {"embedded": 2, "upserted": 2}
    assert held(table) == {'["1"]': "text", '["2"]': "image+text"}
    web.answers["/1.png"] = lambda request: request.say(200 if request.command == "HEAD" else 500, b"", ETag='"3"')
    report = make().sync()
    assert counts(report) == {"failed": 1}
    web.put("/1.png", picture(seed=4), ETag='"4"')
    assert counts(make().sync()) == {"embedded": 1, "upserted": 1}
    assert held(table)['["1"]'] == "image+text"


def test_named_vectors_of_pictures_and_texts(make: Make, table: psycopg.Connection[Any]) -> None:
    fill(
        table,
        (1, "a cat", None, None, picture(seed=1)),
        (2, "a dog", None, None, None),
        (3, None, None, None, picture(seed=3)),
    )
    pipeline = make(content={"title": {"text": "{title}"}, "photo": {"image": "raw"}})
    assert counts(pipeline.sync()) == {"embedded": 3, "upserted": 3}
    query = "select _key, vector_title is not null, vector_photo is not null from item_vectors order by _key"
    assert table.execute(query).fetchall() == [
        ('["1"]', True, True),
        ('["2"]', True, False),
        ('["3"]', False, True),
    ]
    table.execute("update item set title = 'a cow' where id = 1")
    assert counts(pipeline.sync()) == {"embedded": 1, "upserted": 1}


def test_videos_are_contents_as_pictures_are(make: Make, table: psycopg.Connection[Any]) -> None:
    fill(table, (1, "a", None, None, video()), (2, None, None, None, video(frames=8)))
    assert counts(make(content={"video": "raw", "text": "{title}"}).sync()) == {"embedded": 2, "upserted": 2}
    assert held(table) == {'["1"]': "text+video", '["2"]': "video"}


def test_memory_is_bounded_by_batches_of_bytes(make: Make, table: psycopg.Connection[Any], web: Web) -> None:
    from seedbed.media import loading

    fill(table, *((n, f"t{n}", web.put(f"/{n}.png", picture(seed=n), ETag=f'"{n}"')) for n in range(1, 201)))
    with make().open() as session, pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "MOST_BYTES", 40_000)
        assert session.loading is not None
        batches: list[Work] = []
        recorded = session.loading.each

        def each(works: Iterable[Work]) -> Iterator[Work]:
            for batch in recorded(works):
                batches.append(batch)
                yield batch

        patch.setattr(session.loading, "each", each)
        assert sync(session).upserted == 200
    sizes = [sum(len(part.data) for row in batch.contents for one in row for part in one.media) for batch in batches]
    assert len(sizes) > 3
    assert max(sizes) < 40_000 + 64 * len(picture()) * 2


def test_a_plan_counts_pictures_that_nobody_has_seen_at_their_own_price(
    make: Make, table: psycopg.Connection[Any], web: Web
) -> None:
    fill(table, *((n, "a" * 40, web.put(f"/{n}.png", picture(seed=n), ETag=f'"{n}"')) for n in range(1, 5)))
    ark = {"url": "ark:doubao-embedding-vision-250615", "api_key": "any"}
    prices = {"text": 1.0, "image": 1000.0}
    plan = make(embedder=ark, prices=prices).plan()
    assert plan.tokens == 4 * (30 + 1312)
    assert plan.cost == pytest.approx((4 * 30 * 1.0 + 4 * 1312 * 1000.0) / 1e6)
    assert not any(asked.startswith("GET") for asked in web.asked)


def test_the_pipelines_limits_are_the_decoders(make: Make, table: psycopg.Connection[Any]) -> None:
    fill(table, (1, "a", None, None, picture(64, 48)), (2, "b", None, None, picture(200, 200)))
    media = {"max_pixels": 10_000}
    report = make(content={"image": "raw"}, embedder={"url": "conse:minilm"}, media=media).sync()
    assert counts(report) == {"embedded": 1, "upserted": 1, "failed": 1}
    assert "200x200 pixels, more than 10,000" in (report.first_failure or "")


def test_rows_that_hold_pictures_are_read_and_batched_by_bytes(make: Make, table: psycopg.Connection[Any]) -> None:
    size = len(picture())
    fill(table, *((n, None, None, None, picture(seed=n)) for n in range(1, 301)))
    with make(content={"image": "raw"}).open() as session, pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "MOST_BYTES", 20 * size)
        pages = list(session.source.pages(session.selection()))
        assert max(len(page.keys) for page in pages) <= 128
        outlets = session.outlets
        differ = Differ(session.recipe, [outlet.payload for outlet in outlets], session.ledger, [None])
        batches = list(work.batched(found for page in pages if (found := differ.diff(page).work) is not None))
    assert sum(map(len, batches)) == 300
    assert max(work.media_bytes(one for row in batch.contents for one in row) for batch in batches) < 22 * size
    assert all(name != "raw" for batch in batches for name in batch.rows.schema.names)
    assert [key for batch in batches for key in batch.keys] == [key for page in pages for key in page.keys]


@pytest.mark.parametrize(
    ("changes", "setting", "words"),
    [
        ({"media": {"roots": ["not-there"]}}, "media.roots", "no folder"),
        ({"content": {"image": "foto"}}, "content.image", "no column 'foto'"),
        ({"content": {"image": "id"}}, "content.image", "holds no image"),
        ({"content": {"image": "raw"}, "embedder": {"url": "local:minilm"}}, "embedder.url", "takes text"),
        ({"content": {"empty": "skip"}}, "content", "needs text, image or video"),
        ({"content": {"image": "raw", "parts": ["image"]}}, "content.parts", "unknown setting"),
        ({"content": {"image": "raw"}, "chunk": {"tokens": 5}}, "chunk", "cut into chunks"),
        ({"media": {"max_bytes": "lots"}}, "media.max_bytes", "no size"),
    ],
)
def test_what_cannot_be_declared_is_named(
    make: Make, table: psycopg.Connection[Any], changes: dict[str, Any], setting: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught, make(**changes).open() as session:
        _ = session.recipe, session.library
    assert caught.value.setting == setting


def test_doctor_looks_where_the_first_pictures_lie(make: Make, table: psycopg.Connection[Any], web: Web) -> None:
    fill(table, (1, "a", web.put("/1.png", picture(), ETag='"1"')), (2, "b", None))
    with make().open() as session:
        checks = {check.what: check for check in doctor(session)}
    assert (checks["media"].ok, checks["media"].says) == (True, "1 found of the first 2 rows")
    fill(table, (1, "a", "../secret.png"))
    with make().open() as session:
        checks = {check.what: check for check in doctor(session)}
    assert not checks["media"].ok
    assert "row 1" in checks["media"].says
