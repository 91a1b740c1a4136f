"""`seedbed serve local:minilm`: 64 callers of one text each against the same texts embedded offline, and what one idle
caller waits beyond the model's own time. Interleaved, medians. Usage: serve.py"""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import aiohttp
import httpx

import seedbed
from seedbed import Content

CALLERS, TEXTS, ROUNDS = 64, 1500, 5
RAW = {"Accept": "application/octet-stream"}
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards box in bright daylight".split()  # noqa: SIM905


class UnixConnection(http.client.HTTPConnection):
    """As the Postgres extension asks."""

    def __init__(self, path: str) -> None:
        super().__init__("serve", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def texts(run: int) -> list[str]:
    """Each its own, of 5 to 60 words."""
    made = []
    for number in range(TEXTS):
        words = [WORDS[(number * 7 + step * (number % 11 + 1)) % len(WORDS)] for step in range(5 + number % 56)]
        made.append(f"{run} {number} {' '.join(words)}")
    return made


@contextmanager
def serving() -> Iterator[str]:
    """The socket of a server without a cache, ready."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/embed.sock"
        command = [sys.executable, "-m", "seedbed", "serve", "local:minilm", "--uds", path, "--cache", "0B"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                wait(path)
                yield path
            finally:
                process.terminate()


def wait(path: str) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=60) as client:
        while True:
            with suppress(httpx.TransportError):
                if client.get("http://serve/readyz").status_code == 200:
                    return
            time.sleep(0.1)


async def _ask(path: str, wanted: list[str]) -> float:
    waiting = iter(wanted)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path, limit=0), headers=RAW) as session:

        async def caller() -> None:
            for text in waiting:
                async with session.post("http://serve/v1/embeddings", json={"input": text}) as answer:
                    await answer.read()

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return time.perf_counter() - started


def ask(path: str, wanted: list[str]) -> float:
    """Seconds of 64 callers, in a process of their own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(asked, (path, wanted)))


def asked(path: str, wanted: list[str]) -> float:
    return asyncio.run(_ask(path, wanted))


def main() -> None:
    embedder = seedbed.embedder("local:minilm")
    embedder.embed([Content.of("warm")])
    offline, served, alone, idle = [], [], [], []
    with serving() as path, closing(UnixConnection(path)) as connection:
        for run in range(ROUNDS):
            wanted = texts(run)
            started = time.perf_counter()
            embedder.embed([Content.of(text) for text in wanted])
            offline.append(time.perf_counter() - started)
            served.append(ask(path, wanted))
        for number in range(200):
            text = f"{number} the quick brown fox jumps"
            started = time.perf_counter()
            embedder.embed([Content.of(text)])
            alone.append(time.perf_counter() - started)
            started = time.perf_counter()
            connection.request("POST", "/v1/embeddings", json.dumps({"input": text}), RAW)
            connection.getresponse().read()
            idle.append(time.perf_counter() - started)
    embedder.close()
    rates = [TEXTS / statistics.median(seconds) for seconds in (offline, served)]
    print(f"MiniLM, {TEXTS:,} texts of 5 to 60 words, medians of {ROUNDS}, on {platform.machine()}\n")
    print("| | texts/s | of offline |\n|---|---|---|")
    print(f"| offline, one call | {rates[0]:,.0f} | |")
    print(f"| served, {CALLERS} callers of one text | {rates[1]:,.0f} | {rates[1] / rates[0]:.2f} |")
    model, waited = (1000 * statistics.median(seconds) for seconds in (alone, idle))
    print(
        f"\nOne idle caller over the unix socket, median of 200: {waited:.2f} ms, the model alone {model:.2f} ms: ",
        end="",
    )
    print(f"{waited - model:.2f} ms beside it")


if __name__ == "__main__":
    main()
