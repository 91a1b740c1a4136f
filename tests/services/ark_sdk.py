"""The official Ark SDK, in a venv of its own: its dependencies are not ours."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

PINNED = "volcengine-ark-runtime==5.0.54"
HOME = Path(__file__).parents[2] / ".cache" / "ark-sdk-5.0.54"


def ask(endpoint: str, *requests: dict[str, Any], key: str = "a-key") -> list[dict[str, Any]]:
    """What the SDK answers to each request: {"answer": …} or {"error": its class, "code", "status"}."""
    program = [str(_python()), str(Path(__file__).with_name("ark_sdk_program.py")), endpoint, key]
    done = subprocess.run(program, input=json.dumps(requests), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _python() -> Path:
    """Made once a machine, by whichever worker comes first."""
    python = HOME / "bin" / "python"
    HOME.parent.mkdir(exist_ok=True)
    with FileLock(f"{HOME}.lock"):
        if not (HOME / "whole").exists():
            venv.create(HOME, with_pip=True, clear=True)
            pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", PINNED]
            done = subprocess.run(pip, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                pytest.skip(f"{PINNED} cannot be installed here: {done.stderr.strip()[-200:]}")
            (HOME / "whole").touch()
    return python
