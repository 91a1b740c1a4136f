from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from seedbed.content import Content
from seedbed.declaration import ContentConfig
from seedbed.errors import ConfigError
from seedbed.identity import content_hash, named_content_hash
from seedbed.recipe import PayloadRecipe, Recipe
from seedbed.template import Template


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


@pytest.mark.parametrize(
    ("template", "columns", "text"),
    [
        ("{a}: {b}", {"a": ["x"], "b": ["y"]}, "x: y"),
        ("{{{a}}}", {"a": ["x"]}, "{x}"),
        ("{a}|{b}", {"a": pa.array([None], pa.string()), "b": [0]}, "|0"),
        ("{a}", {"a": [1.5]}, "1.5"),
        ("{a}", {"a": pa.array([0.1], pa.float32())}, "0.1"),
        ("{a}", {"a": [True]}, "true"),
        ("{a}", {"a": [Decimal("1.50")]}, "1.50"),
        ("{a}", {"a": [date(2024, 2, 29)]}, "2024-02-29"),
        ("{a}", {"a": [datetime(2024, 2, 29, 1, tzinfo=UTC)]}, "2024-02-29T01:00:00.000000Z"),
        ("{a}", {"a": [["x", "y"]]}, '["x","y"]'),
        ("none", {"a": ["x"]}, "none"),
    ],
)
def test_values_render_in_one_fixed_form(template: str, columns: dict[str, Any], text: str) -> None:
    assert Template.parse(template, "content.text").render(batch(**columns)) == [text]


@pytest.mark.parametrize("template", ["{a", "{}", "{a!r}", "{a:>3}"])
def test_a_wrong_template_is_refused(template: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Template.parse(template, "content.text")
    assert caught.value.setting == "content.text"


def declared(text: str = "", **named: str) -> dict[str, ContentConfig]:
    return {name: ContentConfig(text=said) for name, said in (named or {"": text}).items()}


def test_a_missing_column_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="titel") as caught:
        Recipe(declared("{titel}"), batch(title=["x"]).schema)
    assert "title" in (caught.value.hint or "")
    with pytest.raises(ConfigError) as caught:
        PayloadRecipe(["titel"], batch(title=["x"]).schema, store_text=False)
    assert caught.value.setting == "sink.payload"


def test_named_contents_are_hashed_by_name_in_whatever_order_they_stand() -> None:
    rows = batch(a=["x", "", " "], b=["y", "z", ""])
    one = Recipe(declared(title="{a}", body="{b}"), rows.schema)
    other = Recipe(declared(body="{b}", title="{a}"), rows.schema)
    rendered = one.render(rows)
    assert one.names == ("body", "title")
    assert (rendered.skipped, rendered.refused) == ({2}, {})
    wanted = {"title": Content.of("x").canonical(), "body": Content.of("y").canonical()}
    assert one.hashes(rendered) == other.hashes(other.render(rows))
    assert one.hashes(rendered)[0] == named_content_hash(wanted)
    assert one.fingerprint == other.fingerprint
    swapped = Recipe(declared(title="{b}", body="{a}"), rows.schema)
    assert swapped.hashes(swapped.render(rows))[0] != named_content_hash(wanted)
    assert [[content.empty for content in row] for row in rendered.contents([0, 1])] == [[False, False], [False, True]]
    strict_title = {**declared(body="{b}"), "title": ContentConfig(text="{a}", empty="fail")}
    strict = Recipe(strict_title, rows.schema).render(rows)
    assert (strict.skipped, strict.refused) == (set(), dict.fromkeys((1, 2), "its content 'title' is empty"))


@pytest.mark.parametrize("columns", [{"_x": [1]}, {"vector": [1]}, {"a": [b"x"]}, {"a": [{"b": 1}]}])
def test_payload_that_cannot_be_is_refused(columns: dict[str, Any]) -> None:
    rows = batch(**columns)
    with pytest.raises(ConfigError):
        PayloadRecipe(rows.schema.names, rows.schema, store_text=False)


def test_the_chunker_changes_content_hashes_and_the_payload_list_payload_hashes() -> None:
    rows = batch(a=["x", "y"], b=[1.0, float("nan")])
    plain, chunked = Recipe(declared("{a}"), rows.schema), Recipe(declared("{a}"), rows.schema, b"400/40")
    rendered = plain.render(rows)
    hashes = [content_hash(b"", Content.of(text).canonical()) for text in ("x", "y")]
    assert plain.hashes(rendered) == hashes
    assert not set(hashes) & set(chunked.hashes(rendered))
    one, two = (PayloadRecipe(names, rows.schema, store_text=False) for names in (["a"], ["a", "b"]))
    assert not set(one.hashes(rows)) & set(two.hashes(rows))
    assert two.hashes(rows) == two.hashes(rows.slice(0))
    assert two.columns(rows)[1].to_pylist() == [1.0, None]
