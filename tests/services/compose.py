"""Compose files as far as ours go: with settings filled in, and what services say of one another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_SETTING = re.compile(r"\$\{([A-Z_]+)(?::-([^}]*))?\}")


def load(path: Path, settings: Mapping[str, str] | None = None) -> dict[str, Any]:
    """With `${NAME:-default}` filled in by `settings`."""
    given = settings or {}
    text = _SETTING.sub(lambda found: given.get(found[1], found[2] or ""), path.read_text(encoding="utf-8"))
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def settings(path: Path) -> dict[str, str]:
    """What a compose file asks of .env, with its default."""
    return dict(_SETTING.findall(path.read_text(encoding="utf-8")))


def dotenv(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def chosen(compose: Mapping[str, Any], *profiles: str) -> dict[str, Any]:
    """The services of these profiles."""
    return {
        name: service
        for name, service in compose["services"].items()
        if not service.get("profiles") or set(profiles) & set(service["profiles"])
    }


def mounts(service: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Source, target, and whether it may be written."""
    return [
        (source, target, mode != ["ro"])
        for source, target, *mode in (volume.split(":") for volume in service.get("volumes", []))
    ]
