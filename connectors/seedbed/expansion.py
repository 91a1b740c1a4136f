"""What stands for something else in a pipeline file's strings: `${NAME}`, `${file:PATH}`, and relative paths."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedbed.errors import ConfigError

_REFERENCE = re.compile(r"\$\{(file:)?([^}]*)\}")


def expand(value: Any, base: Path, where: str = "") -> Any:
    """The same value with its references filled in, once. Raises ConfigError for what is not set."""
    match value:
        case str():
            return _REFERENCE.sub(lambda found: _secret(found, base, where), value)
        case Mapping():
            return {name: expand(item, base, f"{where}.{name}".lstrip(".")) for name, item in value.items()}
        case list():
            return [expand(item, base, f"{where}[{number}]") for number, item in enumerate(value)]
        case _:
            return value


def _secret(found: re.Match[str], base: Path, setting: str) -> str:
    is_file, name = found.groups()
    if not is_file:
        if name in os.environ:
            return os.environ[name]
        raise ConfigError(f"${{{name}}} is not set", setting=setting, hint=f"export {name}=… before the command")
    try:
        return (base / name).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"${{file:{name}}} cannot be read: {error.strerror}", setting=setting) from error


_LOCAL = re.compile(r"((?:sqlite|files|[a-z]+\+embedded):)?(?![a-z][a-z0-9+.-]*:)(.+)", re.IGNORECASE | re.DOTALL)


def resolve(url: str, base: Path) -> str:
    """A URL whose path, if it has a relative one, is made absolute: `sqlite:`, `files:`, `…+embedded:`, `local:./…`,
    and plain paths."""
    if url.startswith(("local:./", "local:../")):
        return f"local:{os.path.normpath(base / url.removeprefix('local:'))}"
    found = _LOCAL.fullmatch(url)
    if not found or "://" in url:
        return url
    scheme, path = found.groups()
    return f"{scheme or ''}{os.path.normpath(base / os.path.expanduser(path))}"


def in_folder(url: str) -> bool:
    """Whether a ledger's, a store's or a database's URL is of something that stands in a folder of this machine."""
    return url.startswith("sqlite:") or "+embedded:" in url.partition("/")[0]
