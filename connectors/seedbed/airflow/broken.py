"""A pipeline file that cannot be read, as an import error of that file alone.

Airflow keeps import errors by the file that a DAG says it is from, and learns of them when it reads the file of DAGs
or writes one down. An error while reading would cost every DAG of `dags/seedbed_sync.py`; so what stands for the broken
file is a DAG that says it is from there and cannot be written down. Only where DAGs are written down one by one:
elsewhere (`dag.test()`, a bag of DAGs in a test) it would stop them all.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException

from seedbed.errors import ConfigError


class BrokenPipeline(DAG):
    """Never stored and never run. `relative_fileloc` and `get_serialized_fields` are what Airflow reads first."""

    reason = ""
    source = ""

    @property
    def relative_fileloc(self) -> str:
        return self.source

    @relative_fileloc.setter
    def relative_fileloc(self, value: Any) -> None:
        pass  # Airflow writes the file of DAGs here


def told_apart() -> bool:
    """Whether this is Airflow's DAG processor, which tells errors apart by file; it says so to what it starts."""
    return os.environ.get("_AIRFLOW_PROCESS_CONTEXT") == "client"


def broken(path: Path, error: ConfigError) -> DAG:
    """Stands for the file until it is mended."""

    def fields(cls: type) -> frozenset[str]:
        raise BrokenFile(str(error))

    source = os.path.join(path.parent.name, path.name)
    made = type("Broken", (BrokenPipeline,), {"source": source, "get_serialized_fields": classmethod(fields)})
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem)
    return made(dag_id=f"seedbed_broken_{name}", schedule=None)  # type: ignore[no-any-return]


class BrokenFile(AirflowException):
    """The file and line are in its message."""
