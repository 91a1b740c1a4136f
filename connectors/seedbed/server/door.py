"""The socket that `seedbed serve` listens on, over TCP or in a folder."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seedbed.errors import ConfigError


@contextmanager
def listening(host: str, port: int, uds: Path | None) -> Iterator[socket.socket]:
    """A bound socket. One in a folder has mode 0666, takes the place of a dead one, and goes with its server.

    Raises ConfigError naming the option where the address cannot be had.
    """
    if uds is None:
        with _bound_port(host, port) as door:
            yield door
        return
    with _bound_path(uds) as door:
        inode = uds.stat().st_ino
        try:
            yield door
        finally:
            # Another server may have taken the place meanwhile.
            if uds.exists() and uds.stat().st_ino == inode:
                uds.unlink()


def _bound_port(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error}", setting="--port", hint="choose another --port or --host"
        ) from error


def _bound_path(path: Path) -> socket.socket:
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            _clear(path)
        door.bind(str(path))
        path.chmod(0o666)
    except (OSError, ConfigError) as error:
        door.close()
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"cannot listen on {path}: {error}",
            setting="--uds",
            hint="name a socket of at most 107 bytes in a folder that exists and that this account may write",
        ) from error
    return door


def _clear(path: Path) -> None:
    """Removes the socket of a server that died. Raises ConfigError where one lives, or where it is no socket."""
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ConfigError(f"{path} exists and is no socket", setting="--uds", hint="name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        if trial.connect_ex(str(path)) == 0:
            raise ConfigError(f"a server listens on {path} already", setting="--uds", hint="stop it, or name another")
    path.unlink()
