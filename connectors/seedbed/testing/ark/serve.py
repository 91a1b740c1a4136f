"""`seedbed serve emulator:`: the emulator as a server of its own."""

from __future__ import annotations

from pathlib import Path

import uvicorn

from seedbed.server.door import listening
from seedbed.testing.ark.emulator import ArkEmulator


def run(url: str, *, host: str, port: int, uds: Path | None) -> None:
    """Serves until SIGTERM or Ctrl-C. Raises ConfigError for an unknown option, or an address that is not to be had."""
    emulator = ArkEmulator.from_url(url)
    config = uvicorn.Config(emulator, log_level="warning", access_log=False, lifespan="off", backlog=2048)
    with listening(host, port, uds) as door:
        uvicorn.Server(config).run(sockets=[door])
