from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seedbed.cache import VectorCache, open_cache, parse_size
from seedbed.errors import ConfigError, Fatal


def keys(count: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in range(count)]


def test_vectors_come_back_from_another_process_life(tmp_path: Path) -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    first = VectorCache(tmp_path / "c", 10**6)
    first.put(dict(zip(keys(3), vectors, strict=True)))
    first.close()
    again = VectorCache(tmp_path / "c", 10**6)
    found = again.get(keys(5))
    assert sorted(found) == keys(3)
    np.testing.assert_array_equal(found[keys(3)[2]], vectors[2])


def test_the_oldest_go_first_when_it_is_full(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "c", 2_000_000)
    names = keys(8_000)
    for start in range(0, 8_000, 1_000):
        cache.put({key: np.ones(256, np.float32) for key in names[start : start + 1_000]})
    left = cache.get(names)
    assert names[-1] in left
    assert names[0] not in left
    assert len(left) * 1024 <= 2_000_000


def test_digests_of_media_are_remembered_and_go_with_the_oldest(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "c", 2_000_000)
    names = keys(8_000)
    cache.remember(dict(zip(names[:4], names[4:8], strict=True)))
    cache.remember({names[0]: names[9]})
    assert cache.digests(names[:2]) == {names[0]: names[9], names[1]: names[5]}
    for start in range(0, 8_000, 1_000):
        cache.put({key: np.ones(256, np.float32) for key in names[start : start + 1_000]})
    assert cache.digests(names[:4]) == {}


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"something else, long enough to be looked at" * 50)
    with pytest.raises(Fatal, match="vector cache"):
        VectorCache(tmp_path / "c", 10**6)


@pytest.mark.parametrize(("text", "size"), [("2GB", 2 * 10**9), ("1.5 mb", 1_500_000), ("10B", 10)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "cache.max_size") == size


def test_a_wrong_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="lots"):
        parse_size("lots", "cache.max_size")


def test_a_cache_in_postgres_is_shared(pg_url: str) -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    reading = open_cache(pg_url, "1MB", create=False)
    assert reading is not None
    assert reading.get(keys(5)) == {}
    first, second = open_cache(pg_url, "1MB"), open_cache(pg_url, "1MB")
    assert first is not None
    assert second is not None
    first.put(dict(zip(keys(3), vectors, strict=True)))
    second.put({keys(3)[0]: vectors[0], keys(4)[3]: vectors[1]})
    found = reading.get(keys(5))
    assert sorted(found) == keys(4)
    np.testing.assert_array_equal(found[keys(3)[2]], vectors[2])
    first.remember({b"s" * 32: b"d" * 32})
    first.remember({b"s" * 32: b"e" * 32})
    assert second.digests([b"s" * 32, b"t" * 32]) == {b"s" * 32: b"e" * 32}
    for cache in (first, second, reading):
        cache.close()


def test_the_oldest_go_first_from_postgres_too(pg_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seedbed.cache_postgres._EACH", 1)
    cache = open_cache(pg_url, "1MB")
    assert cache is not None
    for start in range(0, 2_000, 200):
        cache.put({key: np.ones(256, np.float32) for key in keys(2_000)[start : start + 200]})
    left = cache.get(keys(2_000))
    cache.close()
    assert keys(2_000)[-1] in left
    assert keys(2_000)[0] not in left
    assert len(left) * 1024 <= 1_000_000
