from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seedbed.declaration import declare, read, resolve
from seedbed.errors import ConfigError

GOOD: dict[str, Any] = {
    "name": "products",
    "source": {"url": "postgresql://shop@localhost/shop", "table": "products", "tenant": "shop_id"},
    "content": {"text": "{title}"},
    "embedder": {"url": "hash:384"},
    "sink": [{"url": "memory:", "payload": ["title"]}, {"url": "pgvector+embedded:./pg"}],
}


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    made = declare(GOOD, base=tmp_path)
    assert [sink.name for sink in made.sink] == ["memory", "pgvector"]
    assert [sink.collection for sink in made.sink] == ["products", "products"]
    assert [sink.payload for sink in made.sink] == [["title", "shop_id"], ["shop_id"]]
    assert made.sink[1].url == f"pgvector+embedded:{tmp_path}/pg"
    assert made.ledger.url == f"sqlite:{tmp_path}/products.ledger"
    assert made.cache.url == f"{tmp_path}/products.cache"


@pytest.mark.parametrize(
    ("change", "setting", "hint"),
    [
        ({"sorce": {}}, "sorce", "source"),
        ({"source": {"url": "x", "tabel": "t"}}, "source.tabel", "source.table"),
        ({"sink": [{"url": "memory:", "metrc": "l2"}]}, "sink[0].metrc", "sink[0].metric"),
    ],
)
def test_unknown_settings_name_the_nearest(change: dict[str, Any], setting: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        declare({**GOOD, **change}, base=tmp_path)
    assert caught.value.setting == setting
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"sink": []}, "sink"),
        ({"sink": [{"url": "memory:"}, {"url": "memory:x"}]}, "sink.name"),
        ({"sink": [{"url": "memory:", "metric": "cosin"}]}, "sink[0].metric"),
        ({"limits": {"max_delete": 20}}, "limits.max_delete"),
        ({"limits": {"max_delete": "a"}}, "limits.max_delete"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], setting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        declare({**GOOD, **change}, base=tmp_path)
    assert caught.value.setting == setting


def test_secrets_come_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP", "postgresql://shop:pa@h/d")
    (tmp_path / "dim").write_text("hash:16\n", encoding="utf-8")
    declared = {**GOOD, "source": {"url": "${SHOP}", "table": "t"}, "embedder": {"url": "${file:dim}"}}
    made = declare(declared, base=tmp_path)
    assert (made.source.url, made.embedder.url) == ("postgresql://shop:pa@h/d", "hash:16")


def test_a_secret_that_is_not_set_names_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ConfigError, match="NOT_SET") as caught:
        declare({**GOOD, "source": {"url": "${NOT_SET}", "table": "t"}}, base=tmp_path)
    assert caught.value.setting == "source.url"


def test_an_expanded_secret_is_not_expanded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URL", "postgresql://h/${PASSWORD}")
    made = declare({**GOOD, "source": {"url": "${URL}", "table": "t"}}, base=tmp_path)
    assert made.source.url == "postgresql://h/${PASSWORD}"


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('name = "p"\n[source\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"p\.toml.*line 2"):
        read(file)
    with pytest.raises(ConfigError, match="no pipeline file"):
        read(tmp_path / "q.toml")


@pytest.mark.parametrize(
    ("url", "resolved"),
    [
        ("data/x.parquet", "/b/data/x.parquet"),
        ("/a/b.csv", "/a/b.csv"),
        ("s3://x/y.parquet", "s3://x/y.parquet"),
        ("memory:", "memory:"),
        ("hash:384", "hash:384"),
        ("local:minilm", "local:minilm"),
        ("local:./m", "local:/b/m"),
        ("sqlite:./a", "sqlite:/b/a"),
        ("pgvector+embedded:./a", "pgvector+embedded:/b/a"),
    ],
)
def test_only_relative_paths_are_resolved(url: str, resolved: str) -> None:
    assert resolve(url, Path("/b")) == resolved
