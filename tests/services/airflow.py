"""A real Airflow for the tests: its four processes over a database of the tests' Postgres, on free ports.

Each process has a session of its own and is ended by its id, with all that came out of it: tasks run in process groups
of their own, and a scheduler that is told to end leaves them behind.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.airflow_api import Api

USER = "admin"
_START = 120.0
"""Seconds that a busy machine may take; an idle one takes fifteen."""
_END = 10.0
_PR_SET_PDEATHSIG = 1
_TAIL = 2500
_OPTIONS = {"scheduler": ["--skip-serve-logs"], "triggerer": ["--skip-serve-logs"]}
"""Those servers would listen at all addresses of the machine; the API reads the files themselves."""


@dataclass(frozen=True, slots=True)
class Airflow:
    """A running Airflow. `home` holds its logs: NAME.log, and logs/ of the tasks. DAG files may be added to `dags`."""

    api: Api
    home: Path
    dags: Path
    env: Mapping[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """One of api-server, scheduler, dag-processor and triggerer, where it does not run."""
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "airflow", name, *_OPTIONS.get(name, ())],
                env=dict(self.env),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_tests,
            )

    def stop(self, name: str, signal_: signal.Signals = signal.SIGTERM) -> None:
        """Ends one process and what it started; by SIGKILL what has not gone after ten seconds."""
        process = self.processes.pop(name)
        _signal_session(process.pid, signal_)
        until = time.monotonic() + _END
        while time.monotonic() < until and (process.poll() is None or _groups(process.pid)):
            time.sleep(0.05)
        _signal_session(process.pid, signal.SIGKILL)
        process.wait()

    def task_log(self, dag_id: str, task_id: str) -> str:
        """What the tries of a task have logged, in all runs."""
        found = sorted(self.home.glob(f"logs/dag_id={dag_id}/run_id=*/task_id={task_id}/**/*.log*"))
        return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in found)

    def tails(self) -> str:
        """The ends of all logs, for a failure's message."""
        logs = [*self.home.glob("*.log"), *sorted(self.home.glob("logs/dag_id=*/**/*.log*"))[-4:]]
        return "\n".join(f"--- {path.relative_to(self.home)}\n{_tail(path)}" for path in logs)


@contextmanager
def airflow(
    folder: Path, database_url: str, *, dags: Sequence[Path] = (), env: Mapping[str, str] | None = None
) -> Iterator[Airflow]:
    """Airflow with its home in `folder` and its tables in an empty database, with copies of the files `dags`.

    Up when all four processes say that they are healthy. `env` is theirs besides.
    """
    home, files = folder / "airflow", folder / "dags"
    for made in (home, files):
        made.mkdir(parents=True)
    for path in dags:
        shutil.copy(path, files)
    ports = _free_ports(2)
    settings = _environment(home, files, database_url, ports)
    started = Airflow(
        Api(f"http://127.0.0.1:{ports[0]}", USER, settings["SEEDBED_TEST_PASSWORD"]), home, files, settings
    )
    settings.update(env or {})
    with ExitStack() as stack:
        stack.callback(started.api.close)
        started.api.tails = started.tails
        _migrate(settings)
        for name in ("api-server", "scheduler", "dag-processor", "triggerer"):
            started.start(name)
        stack.callback(_stop_all, started)
        _wait_healthy(started)
        yield started


def _die_with_tests() -> None:
    """A run of tests that is killed leaves nothing behind: what these processes have started ends with them."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop_all(started: Airflow) -> None:
    for process in started.processes.values():  # all at once, then each in turn: each takes a second or two to go
        _signal_session(process.pid, signal.SIGTERM)
    for name in [*started.processes]:
        started.stop(name)


# --- settings ---------------------------------------------------------------------------------------


def _environment(home: Path, dags: Path, database_url: str, ports: Sequence[int]) -> dict[str, str]:
    """Everything that tells this Airflow from another one on this machine, and what makes it small and quick."""
    url = database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    password = secrets.token_urlsafe(16)
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({USER: password}), encoding="utf-8")
    passwords.chmod(0o600)
    sections: dict[str, dict[str, object]] = {
        "CORE": {
            "DAGS_FOLDER": dags,
            "LOAD_EXAMPLES": False,
            "EXECUTOR": "LocalExecutor",
            "PARALLELISM": 4,
            "EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{ports[0]}/execution/",
            "FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": passwords,
            "DAGS_ARE_PAUSED_AT_CREATION": False,
            "TEST_CONNECTION": "Enabled",
        },
        "DATABASE": {"SQL_ALCHEMY_CONN": url, "SQL_ALCHEMY_CONN_ASYNC": url},
        "API": {
            "HOST": "127.0.0.1",
            "PORT": ports[0],
            "BASE_URL": f"http://127.0.0.1:{ports[0]}",
            "WORKERS": 1,
            "SECRET_KEY": secrets.token_hex(),
        },
        "API_AUTH": {"JWT_SECRET": secrets.token_hex(32)},
        "LOGGING": {
            "BASE_LOG_FOLDER": home / "logs",
        },
        "SCHEDULER": {
            "SCHEDULER_IDLE_SLEEP_TIME": 0.3,
            "SCHEDULER_HEARTBEAT_SEC": 1,
            "SCHEDULER_HEALTH_CHECK_SERVER_PORT": ports[1],
            "USE_JOB_SCHEDULE": True,
        },
        "DAG_PROCESSOR": {
            "MIN_FILE_PROCESS_INTERVAL": 2,
            "REFRESH_INTERVAL": 2,
            "BUNDLE_REFRESH_CHECK_INTERVAL": 1,
            "DAG_BUNDLE_STORAGE_PATH": home / "bundles",
            "PARSING_PROCESSES": 1,
        },
        "WORKERS": {"MIN_HEARTBEAT_INTERVAL": 1},
        "USAGE_DATA_COLLECTION": {"ENABLED": False},
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return {
        **inherited,
        **{f"AIRFLOW__{s}__{name}": str(value) for s, section in sections.items() for name, value in section.items()},
        "AIRFLOW_HOME": str(home),
        "SEEDBED_TEST_PASSWORD": password,
    }


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


# --- processes --------------------------------------------------------------------------------------


def _migrate(settings: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        env=dict(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"Airflow's database cannot be made: {(done.stdout + done.stderr)[-_TAIL:]}", pytrace=False)


def _wait_healthy(started: Airflow) -> None:
    until, missing = time.monotonic() + _START, ["api-server"]
    while time.monotonic() < until:
        if ended := {name: one.poll() for name, one in started.processes.items() if one.poll() is not None}:
            pytest.fail(f"Airflow's processes ended: {ended}\n{started.tails()}", pytrace=False)
        missing = started.api.unhealthy()
        if not missing:
            return
        time.sleep(0.2)
    pytest.fail(f"Airflow did not start in {_START:.0f} s, waiting for {missing}\n{started.tails()}", pytrace=False)


def _groups(session: int) -> set[int]:
    """The process groups of a session in which somebody lives."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # PID (COMMAND) STATE PPID PGRP SESSION …; the command may hold spaces and brackets.
                state, _, group, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(of) == session and state != "Z":
                found.add(int(group))
    return found


def _signal_session(session: int, signal_: signal.Signals) -> None:
    for group in _groups(session):
        try:
            os.killpg(group, signal_)
        except ProcessLookupError:
            continue


def _tail(path: Path) -> str:
    return path.read_bytes()[-_TAIL:].decode("utf-8", "replace")
