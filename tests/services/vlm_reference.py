"""sentence-transformers with pictures. It needs torchvision, which is kept where nothing else finds it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

PINNED = "torchvision==0.28.0"
HOME = Path(__file__).parents[2] / ".cache" / "torchvision-0.28.0"


def ask(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """`asked` holds `texts`, `images` (uint8 arrays) and an `instruction`; see the program for what is answered."""
    program = [sys.executable, str(Path(__file__).with_name("vlm_reference_program.py")), str(library()), str(folder)]
    done = subprocess.run(program, input=pickle.dumps(asked), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found: dict[str, Any] = pickle.loads(done.stdout)
    return found


def library() -> Path:
    """Made once a machine, by whichever worker comes first."""
    HOME.parent.mkdir(exist_ok=True)
    with FileLock(f"{HOME}.lock"):
        if not (HOME / "whole").exists():
            target = ["--no-deps", "--target", str(HOME), PINNED]
            pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *target]
            done = subprocess.run(pip, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                pytest.skip(f"{PINNED} cannot be installed here: {done.stderr.strip()[-200:]}")
            (HOME / "whole").touch()
    return HOME
