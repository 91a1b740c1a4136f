"""`[media]` of a pipeline, as the parts of this package take it."""

from __future__ import annotations

from seedbed.cache import parse_size
from seedbed.declaration import MediaConfig
from seedbed.media.fetch import Rules
from seedbed.media.library import Whence
from seedbed.media.limits import Limits


def limits(config: MediaConfig) -> Limits:
    """Raises ConfigError for what is no size."""
    return Limits(parse_size(config.max_bytes, "media.max_bytes"), config.max_pixels, seconds=config.max_seconds)


def whence(config: MediaConfig) -> Whence:
    rules = Rules(
        allowed=frozenset(config.allow_hosts),
        most_bytes=parse_size(config.max_bytes, "media.max_bytes"),
        seconds=config.timeout,
        proxy=config.proxy,
    )
    return Whence(config.roots, rules, config.revalidate)
