"""Searching across kinds: by pictures, by mixtures, among one kind, and with all kinds in one list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from media.samples import picture, video
from seedbed import Content, Pipeline, calibration
from seedbed.calibration import Calibration
from seedbed.content import Image, Video
from seedbed.errors import ConfigError
from seedbed.sheet import sheet

Make = Callable[..., Pipeline]
STORES = {"postgres": "pgvector+embedded:pg", "edge": "qdrant+embedded:edge", "lite": "milvus+embedded:lite"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("search")
    rows = [
        {
            "id": n,
            "shop": "a" if n % 2 else "b",
            "title": f"word{n} <b>& more" if n % 3 else None,
            "photo": picture(seed=n) if n % 4 else None,
            "clip": video(frames=4, gop=n + 1) if n == 5 else None,
        }
        for n in range(1, 41)
    ]
    pq.write_table(pa.Table.from_pylist(rows), made / "rows.parquet")
    return made


@pytest.fixture(scope="module")
def make(folder: Path) -> Make:
    def build(name: str, content: dict[str, Any]) -> Pipeline:
        return Pipeline(
            name=name,
            source={"url": "rows.parquet", "key": ["id"], "tenant": "shop"},
            content=content,
            embedder={"url": "hash:64"},
            sink=[{"name": sink, "url": url, "collection": name, "payload": ["title"]} for sink, url in STORES.items()],
            base=folder,
        )

    mixed = build("mixed", {"text": "{title}", "image": "photo", "video": "clip"})
    named = build("named", {"title": {"text": "{title}"}, "photo": {"image": "photo"}})
    assert mixed.sync().exit_code == named.sync().exit_code == 0
    made = {"mixed": mixed, "named": named}
    return lambda name: made[name]


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [hit["id"] for hit in found]


@pytest.mark.parametrize("sink", STORES)
def test_a_picture_or_a_mixture_finds_its_row(make: Make, sink: str) -> None:
    mixed, named = make("mixed"), make("named")
    seven = Image(picture(seed=7))
    assert ids(named.search(Content.of(seven), 1, sink=sink, vector="photo")) == ["7"]
    assert "7" in ids(named.search(Content.of(seven), 5, sink=sink))
    assert ids(named.search("word7 <b>& more", 1, sink=sink, vector="title")) == ["7"]
    assert ids(mixed.search(Content.of("word7 <b>& more", seven), 1, sink=sink)) == ["7"]
    clip = Content.of("word5 <b>& more", Image(picture(seed=5)), Video(video(frames=4, gop=6)))
    (hit,) = mixed.search(clip, 1, sink=sink)
    assert hit["id"] == "5"
    assert hit["score"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("sink", STORES)
def test_one_modality_alone_and_filters_on_every_leg(make: Make, sink: str) -> None:
    mixed, named = make("mixed"), make("named")
    with_photo = {str(n) for n in range(1, 41) if n % 4}
    with_text = {str(n) for n in range(1, 41) if n % 3}
    assert set(ids(mixed.search("word", 40, sink=sink, modality="image"))) == with_photo
    assert set(ids(mixed.search("word", 40, sink=sink, modality="text"))) == with_text
    assert ids(mixed.search("word", 40, sink=sink, modality="video")) == ["5"]
    assert set(ids(named.search("word", 40, sink=sink, modality="image"))) == with_photo
    odd = {str(n) for n in range(1, 41, 2)}
    assert set(ids(mixed.search("word", 40, sink=sink, modality="image", tenant="a"))) == with_photo & odd
    assert set(ids(named.search("word", 40, sink=sink, tenant="a"))) == odd & (with_photo | with_text)
    kept = mixed.search("word", 40, sink=sink, modality="text", filter={"title": "word7 <b>& more"})
    assert ids(kept) == ["7"]


@pytest.mark.parametrize("sink", STORES)
def test_calibrated_lists_hold_all_kinds(make: Make, sink: str) -> None:
    for name in ("mixed", "named"):
        found = make(name).search("word7 <b>& more", 40, sink=sink, calibrated=True)
        assert found[0]["id"] == "7" or name == "mixed"
        scores = [hit["score"] for hit in found]
        assert scores == sorted(scores, reverse=True)
        assert len(set(ids(found))) == len(found)
        assert set(ids(found)) == {str(n) for n in range(1, 41) if n % 3 or n % 4}


def test_a_kind_with_a_head_start_does_not_win_by_it() -> None:
    """Texts lie near each other and near every query: uncalibrated each of them beats every picture."""
    rng = np.random.default_rng(0)
    gap = np.zeros(64, np.float32)
    gap[0] = 2

    def units(vectors: Any) -> Any:
        return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)

    texts, pictures = units(rng.normal(size=(200, 64)) / 8 + gap), units(rng.normal(size=(200, 64)) / 8 - gap)
    query = units(pictures[3] + 2 * gap / np.linalg.norm(gap) * 1.2)
    scores = {"text": texts @ query, "image": pictures @ query}
    assert scores["image"][3] < scores["text"].min()
    known = {}
    for kind, vectors in (("text", texts), ("image", pictures)):
        exact = vectors.astype(np.float64)
        known[kind] = Calibration.from_json(Calibration(exact.mean(0), exact.std(0), 200).to_json())
    above = {kind: [known[kind].above(float(s), query, "cosine") for s in found] for kind, found in scores.items()}
    assert int(np.argmax(above["image"])) == 3
    assert max(above["image"]) > max(above["text"])
    for found in above.values():
        assert abs(float(np.mean(found))) < 0.3
        assert 0.6 < float(np.std(found)) < 1.6
    distance = float(np.linalg.norm(pictures[3] - query))
    assert known["image"].above(-distance, query, "l2") == pytest.approx(max(above["image"]), rel=1e-2)


def test_calibration_is_kept_over_runs_and_measured_anew_after_growth(make: Make, folder: Path) -> None:
    pipeline = make("mixed")

    def kept() -> dict[str, str]:
        with pipeline.open() as session:
            spec = session.open_sink(session.declaration.sink[0]).describe()
            assert spec is not None
            return calibration.kept(spec.info)

    first = kept()
    # Of the other kinds there are too few.
    assert set(first) == {f"calibration {kind}" for kind in ("", "image", "image+text")}
    assert pipeline.sync().upserted == 0
    assert kept() == first
    assert not calibration.stale(first, 40)
    assert calibration.stale(first, 50)
    assert calibration.stale({}, 0)


def test_a_contact_sheet_shows_pictures_and_what_is_none(make: Make) -> None:
    pipeline = make("mixed")
    with pipeline.open() as session:
        html = sheet(session, "what <i>& who", pipeline.search("word7 <b>& more", 40))
    assert html.count("data:image/jpeg;base64,") == 30 + 1
    assert "no picture" in html
    assert "word7 &lt;b&gt;&amp; more" in html
    assert "what &lt;i&gt;&amp; who" in html
    assert "<b>&" not in html


@pytest.mark.parametrize(
    ("name", "query", "options", "setting"),
    [
        ("named", "x", {"modality": "video"}, "--modality"),
        ("named", "x", {"modality": "image", "vector": "title"}, "--modality"),
        ("mixed", "x", {"modality": "sound"}, "--modality"),
        ("mixed", "", {}, None),
        ("mixed", Content(()), {}, None),
    ],
)
def test_what_cannot_be_searched_is_named(make: Make, name: str, query: Any, options: Any, setting: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        make(name).search(query, 1, **options)
    assert caught.value.setting == setting
