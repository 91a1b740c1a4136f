"""Peak memory while 200,000 rows of 1,024 dimensions stream into each store, a process each.
Usage: sink_memory.py [ROWS]"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

DIMENSIONS = 1024
STORES = {
    "pgvector": "pgvector+embedded:{}/pg?index=none",
    "qdrant, embedded": "qdrant+embedded:{}",
    "milvus, embedded": "milvus+embedded:{}",
}


def stream(url: str, rows: int) -> None:
    """Prints the growth in MB from the first tenth of the rows to the end, and the peak."""
    import sinks
    from seedbed import registry
    from seedbed.identity import Space
    from seedbed.protocols import CollectionSpec

    sink = registry.sink(url, collection="stream")
    sink.ensure(CollectionSpec("stream", "bench", Space("m", "r", DIMENSIONS), "cosine", sinks.PAYLOAD))
    early = 0
    for start in range(0, rows, sinks.BATCH):
        for batch in sinks.batches(sinks.BATCH, DIMENSIONS, start):
            sink.upsert(batch)
        if start <= rows // 10:
            early = anonymous()
    assert sink.count() == rows
    print(f"{anonymous() - early} {anonymous()} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}")
    sink.close()


def anonymous() -> int:
    """MB of this process that no file stands behind: a mapped file is the kernel's to drop."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) // 1024
    raise OSError("no RssAnon in /proc/self/status")


def main() -> None:
    if len(sys.argv) > 2:
        stream(sys.argv[1], int(sys.argv[2]))
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    print(f"{rows:,} rows of {DIMENSIONS:,} dimensions; MB of the process that writes\n")
    print("| store | grown after the first tenth | at the end | peak, with mapped files |")
    print("|---|---|---|---|")
    for name, url in STORES.items():
        with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="seedbed-bench-") as folder:
            Path(folder).chmod(0o755)
            command = [sys.executable, __file__, url.format(folder), str(rows)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"| {name} | {' | '.join(done.stdout.split())} |", flush=True)


if __name__ == "__main__":
    main()
