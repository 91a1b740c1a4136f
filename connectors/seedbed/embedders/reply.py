"""What goes with each request, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from seedbed.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def headers_of(api_key: str | None) -> dict[str, str]:
    """Raises ConfigError, which does not show it, for a key that cannot stand in a header."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if api_key:
        if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            raise ConfigError(
                "the API key holds a character that none has: a space, a line's end, an accent",
                setting="embedder.api_key",
                hint="look whether it was copied whole, without quotation marks",
            )
        headers["Authorization"] = f"Bearer {api_key}"
    return headers
