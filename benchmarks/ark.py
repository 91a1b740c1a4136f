"""The Ark client against an emulated service in another process: how near it comes to limits that it is not told, and
how much of a service without limits it can use. Usage: ark.py"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx

import seedbed
from seedbed import Content
from seedbed.ledger import open_ledger
from seedbed.postgres import Database
from seedbed.protocols import CanSpend

MODEL = "doubao-embedding-vision-250615"
ITEMS, RPM = 3000, 3000
WARM_SECONDS = 10.0


@contextmanager
def service(url: str, told: dict[str, Any]) -> Iterator[str]:
    """The address of an emulator; what it answered when is in `told` afterwards."""
    command = [sys.executable, str(Path(__file__).with_name("ark_service.py")), url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        told.update(json.loads(process.communicate()[0]))


def embed(endpoint: str, texts: list[str], ledger: str | None = None, **settings: Any) -> float:
    """Seconds."""
    url = f"ark:{MODEL}?endpoint={endpoint}&in_flight=64"
    with closing(seedbed.embedder(url, api_key="benchmark", **settings)) as embedder:
        if ledger is not None and isinstance(embedder, CanSpend):
            with closing(open_ledger(ledger)) as opened:
                embedder.govern(opened.keeper())
        started = time.monotonic()
        vectors = embedder.embed([Content.of(text) for text in texts])
        seconds = time.monotonic() - started
    assert vectors.shape == (len(texts), 2048)
    return seconds


def limited(url: str, workers: int = 1, ledger: str | None = None) -> str:
    """A line of the table: the rate after the first seconds as a share of the permitted one, and what was refused."""
    told: dict[str, Any] = {}
    texts = [f"row {number} of a table of many rows" for number in range(ITEMS)]
    with service(url, told) as endpoint:
        if workers == 1:
            embed(endpoint, texts)
        else:
            parts = [(endpoint, texts[worker::workers], ledger) for worker in range(workers)]
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                pool.starmap(embed, parts)
    start = min(told["answered"][0], *(told["refused"] or [told["answered"][0]])) + WARM_SECONDS
    answered = [at for at in told["answered"] if at >= start]
    refused = [at for at in told["refused"] if at >= start]
    rate = (len(answered) - 1) / (answered[-1] - answered[0])
    share, bad = rate / (RPM / 60), len(refused) / (len(refused) + len(answered))
    lost = ITEMS - told["texts"][0]
    return f"{share:.1%} | {bad:.1%} | {lost} | {told['texts'][1] - told['texts'][0]}"


def unlimited() -> tuple[float, float]:
    """Items a second at 50 ms and 64 in flight, and without latency: the ceiling of client and emulator together."""
    rates = []
    for latency in (50, 0):
        told: dict[str, Any] = {}
        with service(f"emulator:?latency_ms={latency}", told) as endpoint:
            found = []
            for repeat in range(3):
                texts = [f"row {number} of run {repeat} over many rows" for number in range(12_000)]
                found.append(len(texts) / embed(endpoint, texts, rpm=10_000_000, tpm=0))
            rates.append(statistics.median(found))
    return rates[0], rates[1]


async def bare(library: str, endpoint: str, requests: int = 4000) -> float:
    """Requests a second of a library by itself, 64 at a time, the answers read and not decoded."""
    url = f"{endpoint}/embeddings/multimodal"
    headers = {"Authorization": "Bearer benchmark", "Content-Type": "application/json"}
    numbers = iter(range(requests))

    def body() -> bytes | None:
        number = next(numbers, None)
        if number is None:
            return None
        part = {"type": "text", "text": f"row {number}"}
        return json.dumps({"model": MODEL, "input": [part], "encoding_format": "base64"}).encode()

    started = time.monotonic()
    if library == "aiohttp":
        async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

            async def work() -> None:
                while (data := body()) is not None:
                    async with session.post(url, data=data) as answer:
                        await answer.read()

            await asyncio.gather(*(work() for _ in range(64)))
    else:
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=60) as client:

            async def work() -> None:
                while (data := body()) is not None:
                    (await client.post(url, content=data)).raise_for_status()

            await asyncio.gather(*(work() for _ in range(64)))
    return requests / (time.monotonic() - started)


def main() -> None:
    print(f"{ITEMS:,} items, true limit {RPM:,} requests a minute, 50 ms, on {platform.machine()}\n")
    print("| after the first 10 s | of the permitted rate | refused | lost | paid twice |")
    print("|---|---|---|---|---|")
    base = f"emulator:?rpm={RPM}&latency_ms=50"
    print(f"| one process | {limited(base)} |", flush=True)
    print(
        f"| 5 % of 429 and 1 % of 500 injected | {limited(f'{base}&share_429=0.05&share_500=0.01&seed=7')} |",
        flush=True,
    )
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="seedbed-bench-") as folder:
        Path(folder).chmod(0o755)
        database = Database(f"pgvector+embedded:{folder}/pg")
        database.connect().close()
        try:
            print(f"| four processes, one Postgres ledger | {limited(base, 4, f'pgvector+embedded:{folder}/pg')} |")
        finally:
            database.close()
    at_latency, ceiling = unlimited()
    print(f"\nNo limits, 64 in flight, decoded to float32, medians of 3: {at_latency:,.0f}/s at 50 ms", end="")
    print(
        f" ({at_latency / 1280:.2f} of the ideal 1,280); {ceiling:,.0f}/s without latency: the emulator's ceiling here"
    )
    told: dict[str, Any] = {}
    with service("emulator:", told) as endpoint:
        rates = {name: [] for name in ("aiohttp", "httpx")}  # type: dict[str, list[float]]
        for _ in range(3):
            for name, found in rates.items():
                found.append(asyncio.run(bare(name, endpoint)))
    words = ", ".join(f"{name} {statistics.median(found):,.0f}/s" for name, found in rates.items())
    print(f"\nBare requests, 64 at a time, asyncio's own loop: {words}")


if __name__ == "__main__":
    main()
