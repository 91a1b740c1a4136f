"""A no-op scan of many rows: peak memory, bytes written, rows a second. Usage: noop_scan.py [ROWS …]

Each scan runs in a process of its own, so that the peak is its own. Default: 100,000 and 1,000,000 rows.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sync import fill

from seedbed import Pipeline
from seedbed.postgres import Database


def pipeline(folder: str) -> Pipeline:
    url = f"pgvector+embedded:{folder}/pg"
    return Pipeline(
        name="scan",
        source={"url": url, "table": "documents"},
        content={"text": "{body}"},
        embedder={"url": "hash:8"},
        sink=[{"url": f"{url}?index=none"}],
        cache={"max_size": "1MB"},
        base=folder,
    )


def scan(folder: str) -> None:
    """In a process of its own: one run, its figures as JSON. Bytes are those that the process handed to write()."""
    before = written()
    started = time.perf_counter()
    report = pipeline(folder).sync()
    figures = {
        "read": report.read,
        "upserted": report.upserted,
        "seconds": time.perf_counter() - started,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "written": written() - before,
    }
    print(json.dumps(figures))


def written() -> int:
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["wchar"])


def apart(folder: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "--scan", folder], capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main(sizes: list[int]) -> None:
    print("| rows | first run s | no-op s | no-op rows/s | peak MB | written kB |\n|---|---|---|---|---|---|")
    for rows in sizes:
        with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="seedbed-bench-") as folder:
            Path(folder).chmod(0o755)
            database = Database(f"pgvector+embedded:{folder}/pg")
            connection = database.connect()
            try:
                fill(connection, rows)
                cold = apart(folder)
                noop = apart(folder)
            finally:
                connection.close()
                database.close()
        assert (cold["upserted"], noop["read"], noop["upserted"]) == (rows, rows, 0)
        print(
            f"| {rows:,} | {cold['seconds']:.1f} | {noop['seconds']:.1f} | {rows / noop['seconds']:,.0f} "
            f"| {noop['peak'] / 1e6:.0f} | {noop['written'] / 1e3:.0f} |"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--scan"]:
        scan(sys.argv[2])
    else:
        main([int(size) for size in sys.argv[1:]] or [100_000, 1_000_000])
