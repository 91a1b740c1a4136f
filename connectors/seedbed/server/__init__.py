"""`seedbed serve`: a model of this process behind HTTP, over TCP or a unix socket."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedbed.cache import parse_size
from seedbed.errors import MissingDependency
from seedbed.prices import Prices
from seedbed.server.door import listening

STOP_SECONDS = 30
"""How long a stop waits for callers that are slow to send or to read."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Of a server for many. `api_keys` is a file of `NAME KEY`; `cache` the most that the shared vectors take;
    `batch_tokens` about the most that one call of a model takes; `log` is json or off; `tokens`, `money` (with `price`
    a million tokens) and `ledger` as governing.Governor; pictures and video are fetched from the public web and
    `allow_hosts`, at most `max_media` each; `tls_cert` and `tls_key` are files of a certificate and its key."""

    api_keys: Path | None = None
    cache: str = "256MB"
    batch_tokens: int = 32_768
    log: str = "off"
    tokens: int = 0
    money: float = 0.0
    price: float = 0.0
    ledger: str | None = None
    allow_hosts: tuple[str, ...] = ()
    max_media: str = "20MB"
    tls_cert: Path | None = None
    tls_key: Path | None = None


def _shown(url: str) -> str:
    """What answers call the model: `ark:MODEL` by its id, without an address."""
    return url.partition("?")[0].removeprefix("ark:")


def run(
    url: str,
    settings: Mapping[str, Any],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: Path | None = None,
    options: ServeOptions | None = None,
) -> None:
    """Serves until SIGTERM or Ctrl-C; what waits then is still answered. Listens before the model is loaded.

    A unix socket is made with mode 0666, as a database server of another account must reach it: its folder's
    mode says who may. Raises ConfigError for an address that is taken or not ours to take, and what kept the
    model from loading.
    """
    try:
        import uvicorn

        from seedbed.media.fetch import Rules
        from seedbed.media.library import Library, Whence
        from seedbed.server.app import create_app
        from seedbed.server.batching import Batcher
        from seedbed.server.callers import Callers
        from seedbed.server.governing import Governor
        from seedbed.server.service import Service
    except ModuleNotFoundError as missing:
        raise MissingDependency(
            f"serve needs the package {missing.name!r}, which is not installed", hint="pip install 'seedbed[server]'"
        ) from missing
    from seedbed import registry

    told = options or ServeOptions()
    callers = Callers.read(told.api_keys) if told.api_keys else Callers()
    governor = Governor(told.tokens, told.money, Prices(told.price), told.ledger)
    governor.check()
    batcher = Batcher(lambda: registry.embedder(url, **settings), tokens=told.batch_tokens)
    rules = Rules(allowed=told.allow_hosts, most_bytes=parse_size(told.max_media, "--max-media"))
    cache, library = parse_size(told.cache, "--cache"), Library(Whence(rules=rules))
    service = Service(batcher, cache_bytes=cache, governor=governor, library=library)
    app = create_app(service, _shown(url), callers, log=told.log == "json")
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=STOP_SECONDS,
            ssl_certfile=told.tls_cert,
            ssl_keyfile=told.tls_key,
        )
    )

    def leave() -> None:
        server.should_exit = True

    with listening(host, port, uds) as door, _ended_by_signals(leave):
        batcher.start(on_failure=leave)
        server.run(sockets=[door])
    if batcher.failure is not None:
        raise batcher.failure


@contextmanager
def _ended_by_signals(leave: Callable[[], None]) -> Iterator[None]:
    """uvicorn stops cleanly at SIGTERM and SIGINT and then raises them again, to what stood there before it: as that
    asks only for the same again, the process ends as one that was asked to, not as one that was killed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: leave()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
