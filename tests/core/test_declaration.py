from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from seedbed.declaration import AirflowConfig, declare, headline, read
from seedbed.duration import parse_duration
from seedbed.errors import ConfigError
from seedbed.expansion import resolve

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


# --- lines ------------------------------------------------------------------------------------------

FILE = '''name = "products"
source = { url = "postgresql://shop@localhost/shop", table = "products" }

[content]
text = """
sink = {title}
[embedder]
"""

[embedder]
url = "hash:384"

[[sink]]
url = "memory:"
[[sink]]
"url" = "memory:x" # the second
name = "b"

[limits]
max_delete = 0.2

[airflow]
schedule = "@daily"
'''


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('name = "products"', 'nam = "products"', 1),
        ('table = "products"', 'tabel = "products"', 2),
        ("[limits]", "[limit]", 19),
        ("max_delete", "max_delet", 20),
        ("0.2", '"many"', 20),
        ("0.2", "20", 20),
        ('"url" = "memory:x"', '"url" = "memory:x"\nmetric = "cosin"', 17),
        ('name = "b"', 'metrc = "l2"', 17),
        ('name = "b"', 'name = "memory"', 17),
        ("[embedder]\nurl", "[embedder]\nurll", 11),
        ('[embedder]\nurl = "hash:384"', "[embedder]\nrpm = 5", 10),
        ('"hash:384"', '"${NOT_SET}"', 11),
        ('"@daily"', "5", 23),
        ('schedule = "@daily"', "shards = 0", 23),
        ('[airflow]\nschedule = "@daily"', "[airflow", 22),
        ('schedule = "@daily"', 'schedule = """', 23),
    ],
)
def test_a_wrong_file_is_named_with_its_line(old: str, new: str, line: int, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    assert old in FILE
    file.write_text(FILE.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read(file)
    assert caught.value.message.startswith(f"{file}:{line}: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('name = "p"\n[airflow]\nshards = 0', 3),
        ('name = "p"\n[airflow]\nschedul = "@daily"', 3),
        ('name = "p"\n\n[sorce]\n', 3),
        ('name = "p/q"', 1),
        ('name = "p"\nairflow = 5', 2),
        ('name = "p"\nairflow.shards = 0', 2),
        ('name = "p"\nairflow = { retries = 1, shards = 0 }', 2),
        ('name = "p"\nsink = [\n  { url = "memory:" },\n  { url = "memory:", metrc = "l2" },\n]\nx = 1', 4),
        ("name = \"p\"\ncontent.text = '''\nmetrc = \n'''\nsink = [\n{ url = \"m:\", metrc = 1 }]", 6),
        ('name = "p\n', 1),
    ],
)
def test_a_headline_names_the_line_too(text: str, line: int, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        headline(file)
    assert caught.value.message.startswith(f"{file}:{line}: ")


def test_what_stands_nowhere_is_named_by_the_file(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("[airflow]\nshards = 2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="missing required field `name`") as caught:
        headline(file)
    assert caught.value.message.startswith(f"{file}: ")
    file.write_bytes(b'name = "p"\n# \xff\n')
    with pytest.raises(ConfigError, match=r"p\.toml:2: .*utf-8"):
        headline(file)


# --- [airflow] --------------------------------------------------------------------------------------


def test_how_it_is_scheduled_has_defaults(tmp_path: Path) -> None:
    made = declare(GOOD, base=tmp_path).airflow
    assert made == AirflowConfig()
    assert (made.retries, made.shards, made.parallel, made.tags) == (2, 8, None, [])
    assert (made.retry_wait, made.deadline_after) == (timedelta(minutes=5), None)
    said = {"deadline": "1h30m", "retry_delay": "90s", "tags": ["shop"], "pool": "gpu", "parallel": 2, "retries": 0}
    made = declare({**GOOD, "airflow": said}, base=tmp_path).airflow
    assert (made.retry_wait, made.deadline_after) == (timedelta(seconds=90), timedelta(minutes=90))


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("retries", -1, "0 for none"),
        ("retries", True, ""),
        ("retry_delay", "soon", '"5m"'),
        ("retry_delay", "5m5m", '"5m"'),
        ("retry_delay", "", '"5m"'),
        ("retry_delay", "9" * 20 + "d", '"5m"'),
        ("deadline", "0s", '"2h"'),
        ("deadline", "2 hours", '"1h30m"'),
        ("shards", 0, "at most 256"),
        ("shards", 257, "at most 256"),
        ("parallel", 0, "at least 1"),
        ("pool", "", "leave it out"),
        ("tags", ["x" * 101], "of 1 to 100"),
        ("tags", "shop", ""),
    ],
)
def test_what_cannot_be_scheduled_is_named(name: str, value: Any, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        declare({**GOOD, "airflow": {name: value}}, base=tmp_path)
    assert (caught.value.setting or "").startswith(f"airflow.{name}")
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1h30m", 5400), ("2d", 172_800), (" 1h 30m ", 5400), ("1.5h", 5400), ("250ms", 0.25)],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert parse_duration(text, "source.lag") == timedelta(seconds=seconds)
