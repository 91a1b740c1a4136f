"""`seedbed serve`: a model of this process behind HTTP, over TCP or a unix socket."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seedbed.errors import MissingDependency
from seedbed.server.door import listening

STOP_SECONDS = 30
"""How long a stop waits for callers that are slow to send or to read."""


def run(
    url: str,
    settings: Mapping[str, Any],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: Path | None = None,
) -> None:
    """Serves until SIGTERM or Ctrl-C; what waits then is still answered. Listens before the model is loaded.

    A unix socket is made with mode 0666, as a database server of another account must reach it: its folder's
    mode says who may. Raises ConfigError for an address that is taken or not ours to take, and what kept the
    model from loading.
    """
    try:
        import uvicorn

        from seedbed.server.app import create_app
        from seedbed.server.batching import Batcher
    except ModuleNotFoundError as missing:
        raise MissingDependency(
            f"serve needs the package {missing.name!r}, which is not installed", hint="pip install 'seedbed[server]'"
        ) from missing
    from seedbed import registry

    batcher = Batcher(lambda: registry.embedder(url, **settings))
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(batcher, url), log_level="warning", access_log=False, timeout_graceful_shutdown=STOP_SECONDS
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
