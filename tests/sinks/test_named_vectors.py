"""The contract's part on points of several named vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from seedbed.errors import ConfigError, Refused, RowError
from seedbed.protocols import Sink
from services.stores import (
    AXES,
    Open,
    everything,
    held_points,
    spec,
)

NAN = [float("nan")] * 3


@pytest.fixture
def named(open_sink: Open, request: pytest.FixtureRequest) -> Sink:
    made = open_sink()
    wanted = spec(vectors=("photo", "title"))
    if "milvus-2.3.5" in request.node.name:
        # One vector a point is all that this release has.
        with pytest.raises(ConfigError, match=r"several named vectors needs Milvus 2\.4"):
            made.ensure(wanted)
        pytest.skip("Milvus 2.3.5 has one vector a point")
    made.ensure(wanted)
    return made


def test_named_vectors_are_found_each_by_its_name(named: Sink) -> None:
    batch = held_points({"photo": [AXES[2], NAN, AXES[0]], "title": [AXES[0], AXES[1], NAN]}, title=["a", "b", "c"])
    named.upsert(batch)
    before = everything(named, vectors=True)
    named.upsert(batch)
    assert everything(named, vectors=True) == before
    assert before['["1"]']["vector_photo"] is None
    assert before['["1"]']["vector_title"] == [0.0, 1.0, 0.0]
    assert before['["2"]']["vector_photo"] == [1.0, 0.0, 0.0]

    def hits(using: str, k: int = 9, filter: Any = None) -> list[str]:
        return [hit.key for hit in named.search(np.array([1, 0, 0.5], np.float32), k, filter, using)]

    assert hits("photo") == ['["2"]', '["0"]']
    assert hits("title") == ['["0"]', '["1"]']
    assert hits("title", 9, {"title": ["b", "c"]}) == ['["1"]']
    for wrong in ("", "colour"):
        with pytest.raises(ConfigError, match="has the vectors photo, title"):
            hits(wrong)


def test_a_named_vector_goes_and_comes_and_payload_leaves_it(named: Sink) -> None:
    named.upsert(held_points({"photo": [AXES[0], NAN], "title": [AXES[1], AXES[2]]}))
    named.set_payload(
        held_points({"photo": [NAN], "title": [NAN]}, title=["x"]).drop_columns(["vector_photo", "vector_title"])
    )
    rows = everything(named, vectors=True)
    assert rows['["0"]']["title"] == "x"
    assert rows['["0"]']["vector_photo"] == [1.0, 0.0, 0.0]
    named.upsert(held_points({"photo": [NAN, AXES[2]], "title": [AXES[1], AXES[2]]}, title=["x", None]))
    rows = everything(named, vectors=True)
    assert rows['["0"]']["vector_photo"] is None
    assert rows['["1"]']["vector_photo"] == [0.0, 0.0, 1.0]
    named.finish()
    assert [hit.key for hit in named.search(np.array([1, 0, 0], np.float32), 9, None, "photo")] == ['["1"]']
    with pytest.raises(RowError, match="a point without a vector") as raised:
        named.upsert(held_points({"photo": [AXES[0], NAN], "title": [AXES[0], NAN]}))
    assert raised.value.key == '["1"]'


def test_other_vectors_are_refused(named: Sink, open_sink: Open) -> None:
    with pytest.raises(Refused, match="made for the vectors photo, title, the pipeline makes one vector without"):
        open_sink().ensure(spec())
    with pytest.raises(ConfigError, match="'vector_photo' cannot be payload"):
        named.ensure(spec(payload=pa.schema([pa.field("vector_photo", pa.string())]), vectors=("photo", "title")))
    described = open_sink().describe()
    assert described is not None
    assert described.vectors == ("photo", "title")
