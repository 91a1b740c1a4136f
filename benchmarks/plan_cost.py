"""The fixed cost of `seedbed plan` as a command: a table of one row, everything in step. Median of ten."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sync import fill

from seedbed import load
from seedbed.postgres import Database

FILE = """
name = "cost"
source.url = "pgvector+embedded:./pg"
source.table = "documents"
content.text = "{body}"
embedder.url = "local:minilm"
sink = [{ url = "pgvector+embedded:./pg" }]
"""
RUNS = 10


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="seedbed-bench-") as folder:
        Path(folder).chmod(0o755)
        file = Path(folder) / "cost.toml"
        file.write_text(FILE, encoding="utf-8")
        database = Database(f"pgvector+embedded:{folder}/pg")
        connection = database.connect()
        try:
            fill(connection, 1)
            load(file).sync()
            times = [timed([sys.executable, "-m", "seedbed", "plan", str(file)]) for _ in range(RUNS)]
        finally:
            connection.close()
            database.close()
    print("| | s |\n|---|---|")
    print(f"| median of {RUNS} | {statistics.median(times):.2f} |\n| slowest | {max(times):.2f} |")


def timed(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
