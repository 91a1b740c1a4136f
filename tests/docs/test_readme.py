"""The README's Python runs as it stands, and its pipelines are pipelines."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedbed.declaration import declare

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TOML = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)

PIPELINE = """
name = "shoes"
source = { url = "shoes.parquet", key = ["sku"] }
content.text = "{title}"
embedder.url = "hash:64"
sink = [{ url = "memory:", payload = ["title"] }]
"""


@pytest.mark.parametrize(
    ("block", "says"),
    list(zip(PYTHON, ["red running shoes", "red running shoes", "[", "red running shoes"], strict=True)),
    ids=["pipeline", "source", "embedder", "sink"],
)
def test_python_runs_as_it_stands(block: str, says: str, tmp_path: Path) -> None:
    shoes = {"sku": [1, 2], "title": ["red running shoes", "a wool coat"]}
    pq.write_table(pa.table(shoes), tmp_path / "shoes.parquet")
    (tmp_path / "shoes.toml").write_text(PIPELINE, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def test_the_pipeline_of_ones_own_is_one(tmp_path: Path) -> None:
    made = declare(tomllib.loads(TOML[0]), base=tmp_path)
    assert made.sink[0].collection == "products"
    assert len(TOML[0].splitlines()) <= 12
