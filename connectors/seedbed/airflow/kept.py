"""What a connection of Airflow holds, read field by field."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from seedbed.errors import ConfigError


class Kept(Protocol):
    """A connection of Airflow: the SDK's, or the server's."""

    @property
    def conn_id(self) -> str: ...
    @property
    def conn_type(self) -> str | None: ...
    @property
    def host(self) -> str | None: ...
    @property
    def login(self) -> str | None: ...
    @property
    def password(self) -> str | None: ...
    @property
    def schema(self) -> str | None: ...
    @property
    def port(self) -> int | None: ...
    @property
    def extra(self) -> str | None: ...


def extras(kept: Kept, setting: str) -> dict[str, Any]:
    """Those that hold something: a form leaves the others empty. Raises ConfigError for what is no JSON object."""
    try:
        found = json.loads(kept.extra or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise wrong(kept, "has an extra that is no JSON object", setting, '{"tls": true}')
    return {name: value for name, value in found.items() if value not in (None, "")}


def known_extras(kept: Kept, known: Iterable[str], setting: str) -> dict[str, Any]:
    """The same, of a type that has these alone. Raises ConfigError for others."""
    found, names = extras(kept, setting), list(known)
    for name in found:
        if name not in names:
            raise wrong(
                kept, f"holds the extra {name!r}, which means nothing here", setting, f"known: {', '.join(names)}"
            )
    return found


def flag(kept: Kept, name: str, value: Any, setting: str) -> bool | None:
    """A boolean of a form, or of a URI's query."""
    known = {"none": None, "false": False, "0": False, "true": True, "1": True}
    if str(value).lower() not in known:
        raise wrong(kept, f"holds {name} = {value!r}", setting, "true or false")
    return known[str(value).lower()]


def whole(kept: Kept, name: str, value: Any, setting: str) -> int:
    """A whole number of a form, or of a URI's query."""
    if not re.fullmatch(r"\d{1,18}", str(value)):
        raise wrong(kept, f"holds {name} = {value!r}", setting, "a whole number")
    return int(value)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service is: parts of a URL, each empty where the connection does not say."""

    scheme: str
    host: str
    port: int | None
    path: str

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host


def place(kept: Kept, setting: str) -> Place:
    """Of the fields host, port and schema; the host may be a whole `https://host:port/path`. Raises ConfigError, which
    does not show the host: it may hold what it should not."""
    scheme, mark, rest = (kept.host or "").strip().partition("://")
    if not mark:
        scheme, rest = "", scheme
    try:
        found = urlsplit(f"//[{rest}]" if _is_v6(rest) else f"//{rest}")
        host, port = found.hostname or "", found.port
    except ValueError:
        raise wrong(kept, "holds no host that can be read", setting, _HOST) from None
    if not re.fullmatch(r"[\w.:%-]*", host) or found.username or found.password or found.query or found.fragment:
        raise wrong(kept, "holds no host that can be read", setting, _HOST)
    path, schema = found.path.strip("/"), (kept.schema or "").strip("/")
    if (port and kept.port) or (path and schema):
        raise wrong(kept, "says port or path twice", setting, "in the host, or in fields of their own")
    return Place(scheme.lower(), host, port or kept.port, path or schema)


_HOST = "a name or an address; user, password and port have fields of their own"


def _is_v6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def wrong(kept: Kept, what: str, setting: str, hint: str) -> ConfigError:
    """The error of a connection that cannot be used as it is."""
    return ConfigError(f"the connection {kept.conn_id!r} {what}", setting=setting, hint=hint)
