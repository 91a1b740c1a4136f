"""Airflow's REST API as tests use it: what runs, what came out, and what a user does to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest

_WAIT = 120.0
"""Seconds; much more than anything takes on a machine that is not busy."""
_DONE = frozenset({"success", "failed"})


class Api:
    """One user's way in. Answers of 400 and more fail the test with what was asked and answered."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._login = {"username": user, "password": password}
        self._client = httpx.Client(base_url=url, timeout=30, trust_env=False)
        self.tails: Callable[[], str] = lambda: ""
        """The ends of the logs, which failures are told with."""

    def close(self) -> None:
        self._client.close()

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The JSON answer; `path` as below /api/v2."""
        if "authorization" not in self._client.headers:
            self._client.headers["authorization"] = f"Bearer {self._token()}"
        answer = self._client.request(
            method, path if path.startswith("/ui") else f"/api/v2{path}", json=body, params=query
        )
        if answer.is_error:
            pytest.fail(f"{method} {path} {body or ''}: {answer.status_code} {answer.text}\n{self.tails()}")
        return answer.json() if answer.content else None

    def _token(self) -> str:
        answer = self._client.post("/auth/token", json=self._login)
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def unhealthy(self) -> list[str]:
        """The parts that do not say yet that they are well."""
        try:
            answer = self._client.get("/api/v2/monitor/health")
        except httpx.TransportError:
            return ["api-server"]
        if answer.is_error:
            return ["api-server"]
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return [name for name in parts if answer.json().get(name, {}).get("status") != "healthy"]

    def until(self, what: Callable[[], str], look: Callable[[], Any], seconds: float = _WAIT) -> Any:
        """What `look` gives once it gives something; fails after `seconds`, saying `what` was waited for."""
        end = time.monotonic() + seconds
        while not (found := look()):
            if time.monotonic() > end:
                pytest.fail(f"waited {seconds:.0f} s for {what()}\n{self.tails()}")
            time.sleep(0.2)
        return found

    # --- DAGs and runs ------------------------------------------------------------------------------

    def dag(self, dag_id: str, seconds: float = _WAIT) -> dict[str, Any]:
        """A DAG, as soon as its file is parsed."""

        def look() -> dict[str, Any] | None:
            return next((dag for dag in self.call("GET", "/dags", limit=1000)["dags"] if dag["dag_id"] == dag_id), None)

        found: dict[str, Any] = self.until(
            lambda: f"the DAG {dag_id}, import errors: {self.import_errors()}", look, seconds
        )
        return found

    def unpause(self, dag_id: str, paused: bool = False) -> None:
        self.call("PATCH", f"/dags/{dag_id}", {"is_paused": paused})

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """A new run's id."""
        self.dag(dag_id)
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self.call("POST", f"/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
        return found

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Oldest first."""
        found: list[dict[str, Any]] = self.call("GET", f"/dags/{dag_id}/dagRuns", order_by="id", limit=100)["dag_runs"]
        return found

    def finished(self, dag_id: str, run_id: str, state: str = "success", seconds: float = _WAIT) -> dict[str, Any]:
        """A run that has ended; fails where it ended otherwise than as `state`."""

        def look() -> dict[str, Any] | None:
            found = self.run(dag_id, run_id)
            return found if found["state"] in _DONE else None

        found: dict[str, Any] = self.until(
            lambda: f"the run {run_id} of {dag_id} to end, {self.states(dag_id, run_id)}", look, seconds
        )
        if found["state"] != state:
            pytest.fail(f"{dag_id} ended as {found['state']}: {self.states(dag_id, run_id)}\n{self.tails()}")
        return found

    # --- task instances -----------------------------------------------------------------------------

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """A run's task instances, mapped ones each."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        found: list[dict[str, Any]] = self.call("GET", path, limit=1000)["task_instances"]
        return sorted(found, key=lambda one: (one["task_id"], one["map_index"]))

    def states(self, dag_id: str, run_id: str) -> dict[str, str]:
        """By task id, and `task_id[map_index]` of mapped ones."""
        return {_label(one): one["state"] for one in self.tasks(dag_id, run_id)}

    def in_state(self, dag_id: str, run_id: str, task: str, state: str, seconds: float = _WAIT) -> None:
        """Waits until a task, labelled as in `states`, is in a state."""
        self.until(
            lambda: f"{task} of {dag_id} to be {state}, not {self.states(dag_id, run_id)}",
            lambda: self.states(dag_id, run_id).get(task) == state,
            seconds,
        )

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str = "failed", map_index: int = -1) -> None:
        """As by the user's button: failed, success or skipped."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self.call("PATCH", path if map_index < 0 else f"{path}/{map_index}", {"new_state": state})

    def clear(self, dag_id: str, run_id: str, *task_ids: str, downstream: bool = True) -> None:
        """Has tasks run again, running ones too."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": list(task_ids),
            "only_failed": False,
            "include_downstream": downstream,
        }
        self.call("POST", f"/dags/{dag_id}/clearTaskInstances", body)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.call("GET", path, map_index=map_index, deserialize=False, stringify=False)["value"]

    def xcom_keys(self, dag_id: str, run_id: str, task_id: str) -> set[str]:
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries"
        return {one["key"] for one in self.call("GET", path, limit=1000)["xcom_entries"]}

    def links(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, str | None]:
        """The operator's extra links by their names."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links"
        found: dict[str, str | None] = self.call("GET", path, map_index=map_index)["extra_links"]
        return found

    # --- the rest -----------------------------------------------------------------------------------

    def import_errors(self) -> dict[str, str]:
        """Stack traces by file name."""
        found = self.call("GET", "/importErrors", limit=1000)["import_errors"]
        return {one["filename"]: one["stack_trace"] for one in found}

    def asset_events(self, uri: str | None = None) -> list[dict[str, Any]]:
        """Oldest first, of one asset or of all."""
        found = self.call("GET", "/assets/events", limit=1000, order_by="timestamp")["asset_events"]
        return [one for one in found if uri in (None, one["uri"])]

    def connection(self, connection_id: str, conn_type: str, **fields: Any) -> None:
        """Makes a connection."""
        self.call("POST", "/connections", {"connection_id": connection_id, "conn_type": conn_type, **fields})

    def hook_meta(self) -> dict[str, dict[str, Any]]:
        """What the forms of connections are made from, by connection type."""
        return {one["connection_type"]: one for one in self.call("GET", "/ui/connections/hook_meta")}

    def providers(self) -> dict[str, dict[str, Any]]:
        found = self.call("GET", "/providers", limit=1000)["providers"]
        return {one["package_name"]: one for one in found}

    def pool(self, name: str, slots: int) -> None:
        """Makes a pool."""
        self.call("POST", "/pools", {"name": name, "slots": slots, "include_deferred": False})


def _label(task: Mapping[str, Any]) -> str:
    index = task["map_index"]
    return str(task["task_id"]) if index < 0 else f"{task['task_id']}[{index}]"
