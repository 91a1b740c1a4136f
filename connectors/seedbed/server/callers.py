"""Who may ask: API keys by the caller's name."""

from __future__ import annotations

import hmac
from pathlib import Path

from seedbed.errors import ConfigError
from seedbed.server.dialect import Unauthorized


class Callers:
    """`keys` by name; where there are none, everybody may ask. Shows no key."""

    def __init__(self, keys: dict[str, str] | None = None) -> None:
        self._keys = [(name, key.encode()) for name, key in (keys or {}).items()]

    @classmethod
    def read(cls, path: Path) -> Callers:
        """Lines of `NAME KEY`; `#` begins a comment. Raises ConfigError that names the line."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the API keys {path} cannot be read: {error}", setting="--api-keys") from error
        keys: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) != 2:
                raise _wrong(path, number, "a line is a name and a key")
            if words[0] in keys:
                raise _wrong(path, number, f"{words[0]!r} comes twice")
            if words[1] in keys.values():
                raise _wrong(path, number, "another caller has the same key")
            keys[words[0]] = words[1]
        if not keys:
            raise ConfigError(f"{path} holds no API key", setting="--api-keys", hint="a line is a name and a key")
        return cls(keys)

    def name(self, authorization: str | None) -> str:
        """The caller's name, empty where nobody needs a key. Raises Unauthorized."""
        if not self._keys:
            return ""
        scheme, _, given = (authorization or "").partition(" ")
        raw = given.strip().encode("latin-1", errors="replace")
        # All are compared, so that the time tells nothing.
        found = [name for name, key in self._keys if hmac.compare_digest(key, raw)]
        if scheme.lower() != "bearer" or not found:
            raise Unauthorized("the API key is missing or not known here")
        return found[0]


def _wrong(path: Path, number: int, words: str) -> ConfigError:
    return ConfigError(f"{path}, line {number}: {words}", setting="--api-keys")
