"""Each type's fields as a URL of Seedbed, with the settings that stand beside it: one function a type.

All take the connection and the setting that errors name, and raise ConfigError; none shows a secret.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from seedbed.airflow.kept import Kept, Place, extras, flag, known_extras, place, whole, wrong

_SAME = ("rpm", "tpm")
"""Extras that are settings of an embedder by the same name."""


def ark(kept: Kept, setting: str) -> dict[str, Any]:
    """Password: the API key. Host: another endpoint than the model's. Extras: model, family, rpm, tpm, in_flight."""
    found = known_extras(kept, ("model", "family", "in_flight", *_SAME), setting)
    _refuse_login(kept, setting)
    where = place(kept, setting)
    options: dict[str, Any] = {}
    if where.host:
        options["endpoint"] = f"{where.scheme or 'https'}://{where.address}/{where.path or 'api/v3'}"
    if "in_flight" in found:
        options["in_flight"] = whole(kept, "in_flight", found["in_flight"], setting)
    url = _with(f"ark:{found.get('model', '')}", options)
    return _settings(kept, url, found, setting, **({"family": str(found["family"])} if "family" in found else {}))


def server(kept: Kept, setting: str) -> dict[str, Any]:
    """Host: `http://host:8000/v1`, or its parts; `/v1` where no path is said. Password: the API key. Extras: model,
    batch, in_flight, rpm, tpm, tls."""
    found = known_extras(kept, ("model", "batch", "in_flight", "tls", *_SAME), setting)
    _refuse_login(kept, setting)
    where = place(kept, setting)
    scheme, path = where.scheme, where.path
    if not scheme and path in ("http", "https"):
        scheme, path = path, ""  # as Airflow's own HTTP connections have it
    tls = flag(kept, "tls", found.get("tls"), setting)
    scheme = scheme or ("https" if tls else "http")
    if not where.host or scheme not in ("http", "https") or (tls is not None and tls != (scheme == "https")):
        raise wrong(kept, "names no server", setting, "host: http://host:8000/v1")
    options: dict[str, Any] = {name: found[name] for name in ("model", "batch", "in_flight") if name in found}
    return _settings(kept, _with(f"{scheme}://{where.address}/{path or 'v1'}", options), found, setting)


def qdrant(kept: Kept, setting: str) -> dict[str, Any]:
    """Host and port (gRPC, 6334); password: the API key; extras: tls."""
    found = known_extras(kept, ("tls",), setting)
    _refuse_login(kept, setting)
    where = _store(kept, setting)
    if where.path:
        raise wrong(kept, "names a path or schema", setting, "Qdrant has none: leave it empty")
    return {"url": f"qdrant://{where.address}", **_key(kept), **_tls(kept, where, found, setting)}


def milvus(kept: Kept, setting: str) -> dict[str, Any]:
    """Host, port, schema: the database; login and password, or the password alone as an API key; extras: tls."""
    found = known_extras(kept, ("tls",), setting)
    where = _store(kept, setting)
    database = f"/{quote(where.path, safe='')}" if where.path else ""
    given = {"url": f"milvus://{_login(kept)}{where.address}{database}", **_tls(kept, where, found, setting)}
    return given if kept.login else {**given, **_key(kept)}


_IGNORED = ("cursor", "sqlalchemy_scheme", "sqlalchemy_query")
"""Extras of Airflow's own Postgres connections which are of its hook alone."""
_TOKENS = ("iam", "redshift", "redshift-serverless", "azure_conn_id")
_OF_TOKENS = ("aws_conn_id", "cluster-identifier", "workgroup-name", "region_name")


def postgres(kept: Kept, setting: str) -> dict[str, Any]:
    """Host (a name, an address, a socket's folder, several by commas), port, login, password, schema: the database;
    extras: libpq's parameters."""
    found = {name: value for name, value in extras(kept, setting).items() if name not in _IGNORED}
    for name, value in found.items():
        if name in _TOKENS and value:
            raise wrong(kept, f"logs in by {name}, which Seedbed does not", setting, "give it a user and a password")
        if isinstance(value, dict | list):
            raise wrong(kept, f"holds the extra {name!r} of several values", setting, "text or a number")
    said = {name: _word(value) for name, value in found.items() if name not in (*_TOKENS, *_OF_TOKENS)}
    database = f"/{quote(kept.schema, safe='')}" if kept.schema else "/"
    url = f"postgresql://{_login(kept)}{_hosts(kept, setting)}{database}"
    return {"url": _with(url, said)}


def _word(value: Any) -> str:
    return str(int(value) if isinstance(value, bool) else value)


def _hosts(kept: Kept, setting: str) -> str:
    """Several hosts each with the port, a folder percent-encoded."""
    host = (kept.host or "").strip()
    port = f":{kept.port}" if kept.port else ""
    if host.startswith(("/", "@")):
        return quote(host, safe="") + port
    if "," in host:
        return ",".join(f"{quote(one.strip(), safe=':[]')}{'' if ':' in one else port}" for one in host.split(","))
    where = place(kept, setting)
    if where.scheme or "/" in host:
        raise wrong(kept, "holds no host that can be read", setting, "a name or an address, without postgresql://")
    return where.address.replace("%", "%25") if where.host else port


def _store(kept: Kept, setting: str) -> Place:
    where = place(kept, setting)
    if not where.host or where.scheme not in ("", "http", "https", "grpc", "qdrant", "milvus"):
        raise wrong(kept, "names no host", setting, "host: a name or an address, and the port of gRPC beside it")
    return where


def _tls(kept: Kept, where: Place, found: dict[str, Any], setting: str) -> dict[str, Any]:
    tls = flag(kept, "tls", found.get("tls"), setting)
    if tls is None and where.scheme in ("http", "https"):
        tls = where.scheme == "https"
    return {} if tls is None else {"tls": tls}


def _key(kept: Kept) -> dict[str, Any]:
    return {"api_key": kept.password} if kept.password else {}


def _login(kept: Kept) -> str:
    """`user:password@`, percent-encoded."""
    if not kept.login:
        return ""
    return quote(kept.login, safe="") + (f":{quote(kept.password, safe='')}" if kept.password else "") + "@"


def _refuse_login(kept: Kept, setting: str) -> None:
    if kept.login:
        raise wrong(kept, "has a login", setting, "leave it empty: the password alone is the API key")


def _settings(kept: Kept, url: str, found: dict[str, Any], setting: str, **more: Any) -> dict[str, Any]:
    limits = {name: whole(kept, name, found[name], setting) for name in _SAME if name in found}
    return {"url": url, **_key(kept), **limits, **more}


def _with(url: str, options: dict[str, Any]) -> str:
    """libpq reads no + as a space."""
    return f"{url}?{urlencode(options, quote_via=quote, safe='')}" if options else url
