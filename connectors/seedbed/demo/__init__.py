"""`seedbed demo`: the whole way with nothing but this package: a real table in an embedded Postgres, the packaged
MiniLM, searches by command line, Python and SQL, and a night's edits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from seedbed import load
from seedbed.demo import api, table
from seedbed.errors import ConfigError, Fatal
from seedbed.postgres import Database

QUERY = "compress a file with gzip"
FILE = """\
name = "functions"

[source]
url = "pgvector+embedded:./postgres"
table = "functions"

[content]
text = "{module}.{name}\\n{documentation}"

[chunk]
tokens = 200
overlap = 20

[embedder]
url = "local:minilm"

[[sink]]
name = "postgres"
url = "pgvector+embedded:./postgres"
collection = "function_vectors"
payload = ["module", "name", "signature"]

[[sink]]
name = "qdrant"
url = "qdrant+embedded:./qdrant"
payload = ["module", "name", "signature"]

[[sink]]
name = "milvus"
url = "milvus+embedded:./milvus"
payload = ["module", "name", "signature"]
"""
STORES = ("postgres", "qdrant", "milvus")

Say = Callable[[str], None]


def run(folder: Path, say: Say) -> None:
    """Leaves `folder` with a pipeline to go on with. Raises ConfigError for a folder that holds something else."""
    pipeline_file = folder / "functions.toml"
    if folder.exists() and any(folder.iterdir()) and not pipeline_file.exists():
        raise ConfigError(f"{folder} holds something else", hint="name an empty folder: seedbed demo DIR")
    from seedbed.demo import pictures, sql

    folder.mkdir(parents=True, exist_ok=True)
    if not pipeline_file.exists():
        pipeline_file.write_text(FILE, encoding="utf-8")
    database = Database(f"pgvector+embedded:{folder / 'postgres'}")
    connection = database.connect()
    try:
        rows = table.create(connection)
        say(f"1. A Postgres in {folder}/postgres with {rows:,} rows: the standard library's functions\n")
        shown_sync(pipeline_file, say)
        say("\n2. Searching each store: by command line, Python and SQL\n")
        for store in STORES:
            command(["search", str(pipeline_file), QUERY, "-k", "3", "--sink", store], say)
        _python(pipeline_file, say)
        sql.words(folder, database, QUERY, say)
        say("\n3. A night's changes: 15 rows edited, 5 deleted, 5 added\n")
        table.edit(connection, datetime.now(UTC).isoformat())
        shown_sync(pipeline_file, say, embedded=20, deleted=5)
        say("\n4. The same by API, here an emulated Ark (Seed-1.6-Embedding), under a budget\n")
        api.run(folder, say)
        say("\n5. Photos, found by words, by a picture and by a clip (conse: a classifier beside MiniLM)\n")
        pictures.run(folder, connection, say)
        sql.pictures(folder, database, say)
    finally:
        connection.close()
        database.close()
    say(f"\nGo on in {folder}, or run `seedbed init URL TABLE` on a table of your own:")
    for words in ("plan", "sync", 'search {} "parse a date"', "status", "doctor"):
        say(f"  seedbed {words.format(pipeline_file) if '{}' in words else f'{words} {pipeline_file}'}")


def shown_sync(pipeline_file: Path, say: Say, **expected: int) -> None:
    """Raises Fatal where the run's counts are not as expected."""
    say(f"$ seedbed sync {pipeline_file}")
    report = load(pipeline_file).sync()
    counts = report.as_dict()
    say(
        f"{report.read:,} read, {report.embedded:,} embedded, {report.cached:,} from the cache, "
        f"{report.deleted:,} removed, {report.tokens:,} tokens in {report.seconds:.1f} s"
    )
    wrong = {name: counts[name] for name, count in expected.items() if counts[name] != count}
    if wrong or report.exit_code:
        raise Fatal(f"the demo expected {expected} of this run, which answered {counts}")


def command(arguments: Sequence[str], say: Say) -> None:
    """A command line, typed and answered. Raises Fatal where it fails."""
    shown = " ".join(f'"{word}"' if " " in word else word for word in arguments)
    say(f"$ seedbed {shown}")
    done = subprocess.run(
        [sys.executable, "-m", "seedbed", *arguments], capture_output=True, text=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise Fatal(f"seedbed {shown} failed: {done.stderr.strip()}")
    say(done.stdout.rstrip())


def _python(pipeline_file: Path, say: Say) -> None:
    say(f'\n>>> seedbed.load("{pipeline_file}").search("{QUERY}", k=1)')
    for hit in load(pipeline_file).search(QUERY, k=1):
        say(str(hit))
        if hit["payload"]["module"] != "gzip":
            raise Fatal(f"the demo expected to find gzip, and found {hit}")
