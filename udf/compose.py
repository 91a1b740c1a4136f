"""Puts the extension's scripts together from their parts: `make install` and seedbed.sql.extension do the same by this.

Usage: compose.py FOLDER TARGET: into TARGET, as they are to lie in FOLDER (`$(pg_config --sharedir)/extension`).
"""

from __future__ import annotations

import sys
from pathlib import Path

VERSION = "0.2.0"
HERE = Path(__file__).parent
PARTS = ("functions.sql", "columns.sql", "working.sql", "searching.sql", "rights.sql")
QUEUES = (HERE.parent / "queue.sql", HERE.parent / "connectors" / "seedbed" / "sql" / "queue.sql")
"""The queue's script: in a wheel, and in a checkout."""


def composed(folder: Path) -> dict[str, str]:
    """The files by name. Their Python is read from `folder` alone, so that path stands in the scripts."""
    # Python reads the path from inside of a body quoted by dollars.
    place = ascii(str(folder / f"seedbed--{VERSION}.py")).replace("$", "\\x24")
    load = part("load.py.in").replace('"@UDF@"', place).rstrip("\n")
    queue = next(path for path in QUEUES if path.exists()).read_text(encoding="utf-8")
    body = "".join(map(part, PARTS)).replace("@QUEUE@", queue).replace("@LOAD@", load)
    return {
        "seedbed.control": part("seedbed.control"),
        f"seedbed--{VERSION}.sql": part("create.sql") + body,
        f"seedbed--0.1.0--{VERSION}.sql": part("upgrade.sql") + body,
        f"seedbed--{VERSION}.py": part("udf.py"),
        f"seedbed--{VERSION}-exchange.py": part("exchange.py"),
        f"seedbed--{VERSION}-columns.py": part("columns.py"),
    }


def part(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    for name, text in composed(Path(sys.argv[1])).items():
        (Path(sys.argv[2]) / name).write_text(text, encoding="utf-8")
