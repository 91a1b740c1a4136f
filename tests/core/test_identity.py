"""Identities are for ever: these values may never change."""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedbed.content import Content, Image, Reference, Video
from seedbed.errors import ConfigError, RowError
from seedbed.identity import (
    Space,
    cache_key,
    canonical_key,
    content_hash,
    key_parts,
    named_content_hash,
    point_id,
    position,
    read_key,
    show_key,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "identity.json").read_text(encoding="utf-8"))

VALUES: dict[str, list[object]] = {
    "int": [42],
    "negative": [-7],
    "text": ["naïve ☃"],
    "quote": ['say "hi"\n'],
    "composite": ["eu", 7],
    "uuid": [uuid.UUID("6BA7B810-9DAD-11D1-80B4-00C04FD430C8")],
    "timestamp": [datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=8)))],
    "naive": [datetime(2024, 2, 29, 1, 2, 3)],
    "old": [datetime(33, 4, 3, tzinfo=UTC)],
    "date": [date(2024, 2, 29)],
    "decimal": [Decimal("1E+3")],
    "bytes": [b"\x00\xff"],
    "bool": [True],
}


@pytest.mark.parametrize("name", VALUES)
def test_keys_and_point_ids_are_golden(name: str) -> None:
    key = canonical_key(VALUES[name])
    assert {"key": key, "points": [point_id(key), point_id(key, 3)]} == GOLDEN["keys"][name]


def test_hashes_are_golden() -> None:
    space = Space("m", "r", 1024, "find: ", 2)
    canonical = Content.of("one", "deux ☃").canonical()
    assert GOLDEN["hashes"] == {
        "space": space.digest.hex(),
        "content": content_hash(b"", canonical).hex(),
        "chunked": content_hash(b"c" * 32, canonical).hex(),
        "named": named_content_hash({"title": canonical, "photo": b""}).hex(),
        "cache": cache_key(space.digest, "document", canonical).hex(),
    }


def test_content_parts_do_not_run_together() -> None:
    assert Content.of("ab", "c").canonical() != Content.of("a", "bc").canonical()


@pytest.mark.parametrize("value", [None, 1.5, [1]])
def test_what_cannot_be_a_key_is_refused(value: object) -> None:
    with pytest.raises(RowError):
        canonical_key([value])


def test_keys_as_people_write_them() -> None:
    assert show_key('["42"]') == "42"
    assert read_key("42", 1) == '["42"]'
    assert read_key('["eu", 7]', 2) == '["eu","7"]'
    with pytest.raises(ConfigError, match="2 columns"):
        read_key("42", 2)


INTS = st.integers(min_value=-(2**63), max_value=2**63 - 1)


@given(st.lists(INTS, min_size=2, max_size=2))
def test_positions_order_integers(pair: list[int]) -> None:
    low, high = sorted(pair)
    assert position([str(low)], ["int"]) <= position([str(high)], ["int"])


@given(st.lists(st.tuples(st.text(), st.text(), INTS), min_size=2, max_size=2))
def test_positions_order_composites(pair: list[tuple[str, str, int]]) -> None:
    low, high = sorted(pair, key=lambda row: (row[0].encode(), row[1].encode(), row[2]))
    kinds = ("text", "text", "int")
    assert position([low[0], low[1], str(low[2])], kinds) <= position([high[0], high[1], str(high[2])], kinds)


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_positions_are_unique(one: tuple[str, str], other: tuple[str, str]) -> None:
    kinds = ("text", "text")
    assert (position(one, kinds) == position(other, kinds)) == (one == other)


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_keys_come_back(parts: list[str]) -> None:
    assert key_parts(canonical_key(parts)) == parts


def test_media_are_hashed_by_their_bytes() -> None:
    """Frozen: a cache key of a mixture, and a row's hash where nobody has seen its picture yet."""
    digest = hashlib.sha256(b"png").digest()
    mixture = Content.of("words", Image(b"png"), Video(b"mp4"))
    framed = b"T\x05\0\0\0\0\0\0\0words" + b"I\x20\0\0\0\0\0\0\0" + digest
    assert mixture.canonical() == framed + b"V\x20\0\0\0\0\0\0\0" + hashlib.sha256(b"mp4").digest()
    assert Content.of(Reference("image", "a.png", digest)).canonical() == Content.of(Image(b"png")).canonical()
    key = cache_key(b"space", "document", Content.of("words", Image(b"png")).canonical())
    assert key.hex() == "08d274809a53d4c95779e9419b2627947cc17076a1ec741f06084d828886bc28"
