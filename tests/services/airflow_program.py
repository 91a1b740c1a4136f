"""Programs that import Airflow, each in an interpreter of its own, since it takes over logging and the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def ran(program: str, home: Path, *, given: Any = None, env: dict[str, str] | None = None) -> tuple[Any, str]:
    """What the program answers by `print("RESULT " + json)`, and what it says besides. `given` is its stdin in JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(given),
        env={**os.environ, "AIRFLOW_HOME": str(home), **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = done.stdout.splitlines()
    (answer,) = [line.removeprefix("RESULT ") for line in lines if line.startswith("RESULT ")]
    rest = [line for line in lines if not line.startswith("RESULT ")]
    return json.loads(answer), "\n".join([*rest, done.stderr])
