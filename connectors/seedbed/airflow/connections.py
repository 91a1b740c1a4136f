"""Airflow's connections as what a pipeline file's tables say: which fits which table, and where its fields go.

A connection is read as it stands: what its password holds is no template. See docs/airflow.md for each type's fields.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from seedbed.airflow.connection_urls import ark, milvus, postgres, qdrant, server
from seedbed.airflow.kept import Kept, extras
from seedbed.errors import ConfigError, MissingDependency

if TYPE_CHECKING:
    from airflow.sdk import Connection

_POSTGRES = ("seedbed_postgres", "postgres")
FITTING: Mapping[str, tuple[str, ...]] = {
    "source": _POSTGRES,
    "embedder": ("seedbed_ark", "seedbed_server"),
    "sink": ("seedbed_qdrant", "seedbed_milvus", *_POSTGRES),
    "ledger": _POSTGRES,
    "cache": _POSTGRES,
}
"""Which types of connection each table takes."""

_MADE: Mapping[str, Callable[[Kept, str], dict[str, Any]]] = {
    "seedbed_ark": ark,
    "seedbed_server": server,
    "seedbed_qdrant": qdrant,
    "seedbed_milvus": milvus,
    "seedbed_postgres": postgres,
    "postgres": postgres,
}


def filled(role: str, conn_id: str, said: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """What a connection adds to a table that says `said`, by the table's names: `url`, and `api_key`, `tls`, `rpm`,
    `tpm`, `family` where the connection has them.

    `role` is one of FITTING, `where` the table as errors name it, as `sink[0]`. Raises ConfigError for a connection
    that is not there, does not fit or says what the table says too; MissingDependency without Airflow.
    """
    connection = fetched(conn_id, f"{where}.conn_id")
    return joined(said, mapped(connection, role, where=where), conn_id, where=where)


def fetched(conn_id: str, setting: str) -> Connection:
    """By whatever Airflow knows here: within a task the server's and all backends', elsewhere `AIRFLOW_CONN_…` and
    secrets backends. Its secrets are masked in logs. Raises ConfigError, MissingDependency."""
    # Airflow's warnings go to stdout, which is the reports' under --json.
    with redirect_stdout(sys.stderr):
        return _fetched(conn_id, setting)


def _fetched(conn_id: str, setting: str) -> Connection:
    try:
        from airflow.sdk import BaseHook
        from airflow.sdk.exceptions import AirflowNotFoundException
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] != "airflow":
            raise
        raise MissingDependency(
            f"conn_id = {conn_id!r} names a connection of Airflow, which is not installed",
            setting=setting,
            hint="pip install 'seedbed[airflow]', or write url = … instead",
        ) from missing
    try:
        found = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        raise ConfigError(
            f"Airflow has no connection {conn_id!r}",
            setting=setting,
            hint=f"add it under Admin, Connections; outside of tasks, export AIRFLOW_CONN_{conn_id.upper()}",
        ) from error
    _mask(found, setting)
    return found


def _mask(connection: Connection, setting: str) -> None:
    """Airflow itself masks the password as it stands and the extra as a whole."""
    from airflow.sdk.log import mask_secret

    written = quote(connection.password or "", safe="")
    if written != (connection.password or ""):
        mask_secret(written)
    mask_secret(extras(connection, setting))


def mapped(connection: Kept, role: str, *, where: str) -> dict[str, Any]:
    """What a connection says, by the table's names. Raises ConfigError where it does not fit the role."""
    kind = connection.conn_type or ""
    if kind not in FITTING[role]:
        raise ConfigError(
            f"the connection {connection.conn_id!r} is of the type {kind!r}, which is none for a {role}",
            setting=f"{where}.conn_id",
            hint=f"a {role} takes {', '.join(FITTING[role])}",
        )
    return _MADE[kind](connection, f"{where}.conn_id")


def joined(said: Mapping[str, Any], given: Mapping[str, Any], conn_id: str, *, where: str) -> dict[str, Any]:
    """`given` by a connection, beside what the table says itself: `url` may name the model (`ark:…`) or add options
    (`?index=none`). Raises ConfigError where both say the same."""
    for name in given:
        if name != "url" and said.get(name) is not None:
            raise _twice(name, conn_id, f"{where}.{name}")
    return {**given, "url": _url(str(said.get("url") or ""), str(given["url"]), conn_id, f"{where}.url")}


def _url(said: str, given: str, conn_id: str, setting: str) -> str:
    head, _, options = given.partition("?")
    model, _, added = said.partition("?")
    if model and not (model.startswith("ark:") and given.startswith("ark:")):
        raise ConfigError(
            f"url and conn_id = {conn_id!r} both say where it is: either one",
            setting=setting,
            hint='beside conn_id, url may say which model, "ark:…", or options alone, "?name=value"',
        )
    if model and head != "ark:":
        raise _twice("the model", conn_id, setting)
    known = {option.partition("=")[0] for option in options.split("&") if option}
    for name in (option.partition("=")[0] for option in added.split("&")):
        if name in known:
            raise _twice(name, conn_id, setting)
    head = model or head
    if head == "ark:":
        raise ConfigError(
            f"neither url nor conn_id = {conn_id!r} says which model",
            setting=setting,
            hint='url = "ark:doubao-embedding-vision-250615" beside conn_id',
        )
    query = "&".join(part for part in (options, added) if part)
    return f"{head}?{query}" if query else head


def _twice(name: str, conn_id: str, setting: str) -> ConfigError:
    return ConfigError(
        f"{name} stands here and in the connection {conn_id!r}: either one",
        setting=setting,
        hint="leave it out here, or take it from the connection",
    )
