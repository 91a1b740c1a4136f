"""`seedbed serve`: a model of this process behind HTTP, over TCP or a unix socket."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedbed.errors import ConfigError, MissingDependency


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
    mode says who may. Raises what kept the model from loading.
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

    if uds is not None and not uds.parent.is_dir():
        raise ConfigError(f"the folder {uds.parent} does not exist", setting="--uds", hint="create it")
    batcher = Batcher(lambda: registry.embedder(url, **settings))
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(batcher, url),
            host=host,
            port=port,
            uds=str(uds) if uds else None,
            log_level="warning",
            access_log=False,
        )
    )

    def leave() -> None:
        server.should_exit = True

    batcher.start(on_failure=leave)
    server.run()
    if batcher.failure is not None:
        raise batcher.failure
