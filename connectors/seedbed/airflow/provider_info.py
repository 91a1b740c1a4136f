"""What Airflow asks a provider: which connections there are, how their forms look, and where the classes are.

Airflow asks at the start of each of its processes, so nothing is imported here.
"""

from __future__ import annotations

from typing import Any

_NAME = "Seedbed"


def get_provider_info() -> dict[str, Any]:
    """By the schema of Airflow's provider information; the forms as `conn-fields` and `ui-field-behaviour`."""
    modules = {"integration-name": _NAME}
    return {
        "package-name": "seedbed",
        "name": _NAME,
        "description": "Keeps vector databases in step with the rows and media they were made from.",
        "integrations": [{"integration-name": _NAME, "tags": ["service"]}],
        "operators": [{**modules, "python-modules": ["seedbed.airflow.operators"]}],
        "hooks": [{**modules, "python-modules": ["seedbed.airflow.hooks"]}],
        "sensors": [{**modules, "python-modules": ["seedbed.airflow.sensors"]}],
        "triggers": [{**modules, "python-modules": ["seedbed.airflow.triggers"]}],
        "extra-links": ["seedbed.airflow.links.ReportLink"],
        "connection-types": [_ark(), _server(), _qdrant(), _milvus(), _postgres()],
    }


def _connection(
    kind: str, hook: str, name: str, fields: dict[str, Any], hidden: list[str], labels: dict[str, str], **shown: str
) -> dict[str, Any]:
    """`shown` are the placeholders."""
    return {
        "connection-type": kind,
        "hook-class-name": f"seedbed.airflow.hooks.{hook}",
        "hook-name": name,
        "conn-fields": fields,
        "ui-field-behaviour": {"hidden-fields": hidden, "relabeling": labels, "placeholders": shown},
    }


def _field(label: str, description: str, kind: str = "string", **more: Any) -> dict[str, Any]:
    """One that may be left empty."""
    return {"label": label, "description": description, "schema": {"type": [kind, "null"], **more}}


def _limits() -> dict[str, Any]:
    return {
        "rpm": _field("Requests a minute", "Of the account; 0 for no limit.", "integer", minimum=0),
        "tpm": _field("Tokens a minute", "Of the account; 0 for no limit.", "integer", minimum=0),
        "in_flight": _field("Requests at a time", "The most beside one another.", "integer", minimum=1),
    }


_TLS = _field("TLS", "Empty: as the address says.", "boolean")


def _ark() -> dict[str, Any]:
    fields = {
        "model": _field("Model", "Leave it empty where pipeline files say it: url = 'ark:MODEL'."),
        "family": _field("Family", "The model behind an endpoint id such as ep-…"),
        **_limits(),
    }
    return _connection(
        "seedbed_ark",
        "SeedbedArkHook",
        "Ark embeddings (Seedbed)",
        fields,
        ["port", "login", "schema", "extra"],
        {"host": "Endpoint", "password": "API key"},
        host="empty: the model's own, as https://ark.cn-beijing.volces.com/api/v3",
        model="doubao-embedding-vision-250615",
    )


def _server() -> dict[str, Any]:
    fields = {
        "model": _field("Model", "Empty: the first that the server lists."),
        "batch": _field("Texts a request", "The most of one request.", "integer", minimum=1),
        **_limits(),
        "tls": _TLS,
    }
    return _connection(
        "seedbed_server",
        "SeedbedServerHook",
        "Embedding server (Seedbed)",
        fields,
        ["login", "schema", "extra"],
        {"host": "Address", "password": "API key"},
        host="http://embedder:8000/v1",
    )


def _qdrant() -> dict[str, Any]:
    return _connection(
        "seedbed_qdrant",
        "SeedbedQdrantHook",
        "Qdrant (Seedbed)",
        {"tls": _TLS},
        ["login", "schema", "extra"],
        {"password": "API key", "port": "Port (gRPC)"},
        host="qdrant",
        port="6334",
    )


def _milvus() -> dict[str, Any]:
    return _connection(
        "seedbed_milvus",
        "SeedbedMilvusHook",
        "Milvus (Seedbed)",
        {"tls": _TLS},
        ["extra"],
        {"schema": "Database", "password": "Password, or without a login the API key"},
        host="milvus",
        port="19530",
    )


def _postgres() -> dict[str, Any]:
    modes = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full", None]
    fields = {
        "sslmode": _field("SSL mode", "As libpq has it.", enum=modes),
        "sslrootcert": _field("SSL root certificate", "A file on the workers."),
        "sslpassword": _field("SSL key's password", "Of the client's key, where it has one.", format="password"),
    }
    return _connection(
        "seedbed_postgres",
        "SeedbedPostgresHook",
        "Postgres with pgvector (Seedbed)",
        fields,
        [],
        {"schema": "Database"},
        host="postgres",
        port="5432",
    )
