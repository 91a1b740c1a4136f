"""`seedbed init`: a first pipeline file from what a source looks like."""

from __future__ import annotations

import re

import pyarrow as pa

from seedbed import registry
from seedbed.errors import ConfigError
from seedbed.protocols import Source

_FILE = """\
# A Seedbed pipeline. Try it: seedbed doctor {name}.toml, then plan, sync, search.
name = "{name}"

[source]
url = {url}
{relation}
key = [{key}]
changes = "scan"            # reads every row, embeds what changed, removes what is gone{queue}
{watermark}
[content]                   # one vector a row, of this text; {{{{ is a brace, NULL renders as nothing
text = "{text}"

# [chunk]                   # for texts longer than the model takes
# tokens = 400
# overlap = 40

[embedder]
url = "local:minilm"        # the packaged English model; or local:PATH, local:Qwen/Qwen3-Embedding-0.6B

[[sink]]
url = {sink}
collection = "{name}_vectors"
payload = [{payload}]

[limits]                    # shares of the rows; a run beyond stops and asks
max_delete = 0.2
max_reembed = 0.2
"""


def draft(url: str, table: str | None) -> tuple[str, str]:
    """The pipeline's name and its file. Raises ConfigError where the source cannot be read or has no text."""
    settings: dict[str, object] = {} if table is None else {"table": table}
    if table is None and url.startswith(("postgresql:", "postgres:", "pgvector+embedded:")):
        raise ConfigError("a database URL needs a table", hint="seedbed init URL TABLE")
    last = table.rsplit(".", 1)[-1] if table else url.rstrip("/").rsplit("/", 1)[-1].partition(".")[0]
    name = re.sub(r"[^A-Za-z0-9_]+", "_", last).strip("_") or "pipeline"
    source = _open(url, settings)
    try:
        schema, key = source.schema(), list(source.key_columns)
    finally:
        source.close()
    texts = [f.name for f in schema if pa.types.is_string(f.type) and f.name not in key]
    if not texts:
        raise ConfigError(f"{table or url} has no text column to embed", hint=f"its columns: {', '.join(schema.names)}")
    times = [f.name for f in schema if pa.types.is_timestamp(f.type)]
    watermark = (
        f'# watermark = "{times[-1]}"   # with changes = "watermark": reads only what is newer\n' if times else ""
    )
    small = [f.name for f in schema if f.name not in (*key, "id", "vector") and not f.name.startswith("_")]
    return name, _FILE.format(
        name=name,
        url=_quoted(_shown(url)),
        relation=f"table = {_quoted(table)}" if table else '# where = "…"',
        key=", ".join(map(_quoted, key)),
        watermark=watermark,
        queue='; or "queue", after `seedbed watch`' if table else "",
        text="\\n".join(f"{{{column}}}" for column in texts[:3]),
        sink=_quoted(_shown(url)) if table else '"pgvector+embedded:./vectors"',
        payload=", ".join(map(_quoted, [n for n in small if _is_payload(schema.field(n))][:4])),
    )


def _open(url: str, settings: dict[str, object]) -> Source:
    try:
        return registry.source(url, **settings)
    except ConfigError as error:
        if error.setting != "source.key" or "table" in settings:
            raise
        columns = registry.source(url, **settings, key=["?"]).schema().names
        return registry.source(url, **settings, key=columns[:1])


def _is_payload(field: pa.Field) -> bool:
    return not (pa.types.is_nested(field.type) or pa.types.is_binary(field.type))


def _shown(url: str) -> str:
    """Without its password, which does not belong into a file."""
    return re.sub(r"(?<=://)([^:/@]+):[^@/]+@", r"\1:${PGPASSWORD}@", url)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
