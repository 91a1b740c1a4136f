"""Hooks of Seedbed's five connection types. Each hands out Seedbed's own parts, and asks the service in
`test_connection`. Models and clients are imported when they are first used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from airflow.sdk import BaseHook

from seedbed.airflow import connections
from seedbed.errors import SeedbedError

if TYPE_CHECKING:
    from seedbed.ledger import Ledger
    from seedbed.protocols import Embedder, Sink, Source

TEST_SECONDS = 20.0
"""The most that `test_connection` waits for the service."""
_NOWHERE = "seedbed_connection_test"
"""A collection that nobody has: to ask for it needs the address, the login and the rights to read."""


class _SeedbedHook(BaseHook):
    conn_name_attr: ClassVar[str] = "conn_id"
    default_conn_name: ClassVar[str]
    conn_type: ClassVar[str]
    hook_name: ClassVar[str]

    def __init__(self, conn_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id or self.default_conn_name

    def test_connection(self) -> tuple[bool, str]:
        """Whether the service answers to this connection, and in words what it says; no secret is among them."""
        try:
            return _within(TEST_SECONDS, self._test())
        except SeedbedError as error:
            return False, _words(error)

    def _test(self) -> Callable[[], str]:
        """What asks the service, and says what it answered. Raises ConfigError for a connection that cannot be used."""
        raise NotImplementedError

    def _table(self, role: str, url: str, said: dict[str, Any]) -> dict[str, Any]:
        return {**said, **connections.filled(role, self.conn_id, {"url": url, **said}, where=role)}


def _within(seconds: float, look: Callable[[], str]) -> tuple[bool, str]:
    """In a thread that is left to itself when the time is over, since some clients go on for minutes."""
    answers: queue.SimpleQueue[tuple[bool, str]] = queue.SimpleQueue()

    def ask() -> None:
        answer = False, "the test itself failed: see the log of this process"
        try:
            answer = True, look()
        except SeedbedError as error:
            answer = False, _words(error)
        finally:
            answers.put(answer)

    threading.Thread(target=ask, name="seedbed-test", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return False, f"no answer within {seconds:g} s: check the address, and whether a firewall is between"


def _words(error: SeedbedError) -> str:
    return error.message + (f" ({error.hint})" if error.hint else "")


class _EmbedderHook(_SeedbedHook):
    def embedder(self, url: str = "", **settings: Any) -> Embedder:
        """Settings as in `[embedder]`: dimensions, instruction, query_instruction, …; `url` may name the model
        (`ark:MODEL`) or add options (`?model=…`). Raises ConfigError. The caller closes it."""
        from seedbed import registry

        return registry.embedder(**self._table("embedder", url, settings))

    def _asked(self, embedder: Embedder) -> str:
        from seedbed.content import Content

        try:
            vectors = embedder.embed([Content.of("seedbed")])
            return f"{embedder.space.model} answers with {vectors.shape[1]} dimensions"
        finally:
            embedder.close()


class SeedbedArkHook(_EmbedderHook):
    """Embeddings by the Ark API. `test_connection` embeds one word, which costs about 20 tokens."""

    default_conn_name = "seedbed_ark_default"
    conn_type = "seedbed_ark"
    hook_name = "Ark embeddings (Seedbed)"

    def _test(self) -> Callable[[], str]:
        said = connections.mapped(connections.fetched(self.conn_id, "conn_id"), "embedder", where="embedder")
        url = str(said["url"])
        model = "" if url.partition("?")[0] != "ark:" else f"ark:{_usual_model(url)}"
        embedder = self.embedder(f"{model}?seconds=10")
        return lambda: self._asked(embedder)


def _usual_model(url: str) -> str:
    """Of the endpoint that the URL names, else of Volcengine's."""
    from seedbed.embedders.ark_models import FAMILIES
    from seedbed.embedders.options import Options

    host = urlsplit(Options.parse(url, ("endpoint", "in_flight")).text("endpoint") or "").hostname
    there = [name for name, family in FAMILIES.items() if urlsplit(family.endpoint).hostname == host]
    return (there or list(FAMILIES))[0]


class SeedbedServerHook(_EmbedderHook):
    """Embeddings by a server with OpenAI's `/embeddings`: Seedbed's own or another. `test_connection` asks it what it
    is, and for one vector."""

    default_conn_name = "seedbed_server_default"
    conn_type = "seedbed_server"
    hook_name = "Embedding server (Seedbed)"

    def _test(self) -> Callable[[], str]:
        embedder = self.embedder("?seconds=10")
        return lambda: self._asked(embedder)


class _SinkHook(_SeedbedHook):
    def sink(self, collection: str, url: str = "", **settings: Any) -> Sink:
        """Settings as in `[[sink]]`; `url` may add options (`?quantization=int8`). Raises ConfigError. The caller
        closes it."""
        from seedbed import registry

        return registry.sink(**self._table("sink", url, {"collection": collection, **settings}))

    def _test(self) -> Callable[[], str]:
        sink = self.sink(_NOWHERE)

        def asked() -> str:
            try:
                sink.describe()
            finally:
                sink.close()
            return f"{self.hook_name.partition(' ')[0]} answers and lets collections be read"

        return asked


class SeedbedQdrantHook(_SinkHook):
    """A Qdrant server, by gRPC."""

    default_conn_name = "seedbed_qdrant_default"
    conn_type = "seedbed_qdrant"
    hook_name = "Qdrant (Seedbed)"


class SeedbedMilvusHook(_SinkHook):
    """A Milvus server, or Zilliz' cloud."""

    default_conn_name = "seedbed_milvus_default"
    conn_type = "seedbed_milvus"
    hook_name = "Milvus (Seedbed)"


class SeedbedPostgresHook(_SinkHook):
    """A Postgres: rows to read, a store by pgvector, a ledger. Airflow's own `postgres` connections fit too."""

    default_conn_name = "seedbed_postgres_default"
    conn_type = "seedbed_postgres"
    hook_name = "Postgres with pgvector (Seedbed)"

    def source(self, table: str | None = None, **settings: Any) -> Source:
        """Settings as in `[source]`: query in place of the table, where, key, … Raises ConfigError. The caller closes
        it."""
        from seedbed import registry

        given = settings if table is None else {"table": table, **settings}
        return registry.source(**self._table("source", "", given))

    def ledger(self, *, create: bool = True) -> Ledger:
        """As ledger.open_ledger. The caller closes it."""
        from seedbed.ledger import open_ledger

        return open_ledger(self._table("ledger", "", {})["url"], create=create)

    def _test(self) -> Callable[[], str]:
        from seedbed.postgres import Database, mapped

        database = Database(self._table("source", "", {})["url"], setting="conn_id")

        def asked() -> str:
            with database.connect() as connection, mapped("conn_id"):
                row = connection.execute(_VERSIONS).fetchone()
            assert row is not None
            version, installed, available = row
            if installed:
                return f"Postgres {version} with pgvector {installed}"
            said = "can be created here" if available else "is not installed, so a source or a ledger alone"
            return f"Postgres {version}; pgvector {said}"

        return asked


_VERSIONS = """
    select current_setting('server_version'),
           (select extversion from pg_extension where extname = 'vector'),
           (select default_version from pg_available_extensions where name = 'vector')
"""
