"""Runs one Milvus server until nobody holds a lock on USERS: `python milvus_process.py RUN_FOLDER CACHE`.

Executed by the interpreter that has the package `milvus`. The lock of a killed test run dies with it, and the
server with this process.
"""

import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import milvus  # type: ignore[import-not-found]

DEATH = 1


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(DEATH, signal.SIGKILL)


def start(data: Path, cache: Path) -> tuple[subprocess.Popen[bytes], int]:
    config = milvus.MilvusServerConfig()
    config.update(data_dir=str(data))
    config.resolve()
    web = free_port()
    whole = data / "configs" / "milvus.yaml"
    whole.write_text(guard(hurry(move_etcd(whole.read_text(), data))))
    # The package packs its binaries, and a second of unpacking a run adds up.
    binaries = cache / "bin"
    milvus._initialize_data_files(str(cache))
    environment = {
        **os.environ,
        "DEPLOY_MODE": "STANDALONE",
        "METRICS_PORT": str(web),
        "MILVUS_RUN_DIR": str(data / "run"),
        "LD_LIBRARY_PATH": str(binaries),
    }
    with (data / "server.log").open("wb") as log:
        command = [str(binaries / "milvus"), "run", "standalone"]
        server = subprocess.Popen(
            command, cwd=data, env=environment, stdout=log, stderr=log, preexec_fn=die_with_parent
        )
    wait(server, f"http://127.0.0.1:{web}/healthz", data / "server.log")
    return server, config.get("proxy_port")


def move_etcd(text: str, data: Path) -> str:
    """The etcd inside has a fixed port beside its configured one, so that a machine could run one Milvus alone."""
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    settings = {
        "name": "default",
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"default={peer}",
    }
    own = data / "configs" / "etcd.yaml"
    own.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    endpoint = client.removeprefix("http://")
    head, _, rest = text.partition("\netcd:\n")
    _, _, rest = rest.partition("\n")
    return f"{head}\netcd:\n  endpoints: {endpoint}\n  config:\n    path: {own}\n{rest}"


def hurry(text: str) -> str:
    """A collection is loaded in steps that wait for the next look at the state of things."""
    eager = "checkChannelInterval: 50\n  checkSegmentInterval: 50\n  checkInterval: 50\n  distPullInterval: 50"
    text = re.sub(r"\n  (checkInterval|distPullInterval): \d+", "", text)
    text = text.replace("\nqueryCoord:\n", f"\nqueryCoord:\n  {eager}\n")
    return text.replace("timeTickInterval: 200", "timeTickInterval: 50")


def guard(text: str) -> str:
    """A user must log in, by Milvus' first password: root:Milvus."""
    return text.replace("authorizationEnabled: false", "authorizationEnabled: true")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait(server: subprocess.Popen[bytes], health: str, log: Path) -> None:
    until = time.monotonic() + 170
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=10) as answer:
                if b"OK" in answer.read():
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"the server did not start: {log.read_text()[:3000]}")


def unused(users: int) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(run: Path, cache: Path) -> None:
    users = os.open(run / "users", os.O_RDWR)
    data = Path(tempfile.mkdtemp(prefix="seedbed-milvus-"))
    try:
        server, port = start(data, cache)
        (run / "port.new").write_text(str(port))
        (run / "port.new").rename(run / "port")
        while server.poll() is None and not unused(users):
            time.sleep(0.5)
        server.kill()
        server.wait()
    finally:
        shutil.rmtree(data, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
