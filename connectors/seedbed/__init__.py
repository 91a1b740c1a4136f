"""Seedbed keeps vector databases in step with the rows and media they were made from."""

from typing import TYPE_CHECKING

from seedbed import errors
from seedbed.content import Content

if TYPE_CHECKING:
    from seedbed.pipeline import Pipeline, load
    from seedbed.registry import embedder, sink, source

__all__ = ["Content", "Pipeline", "embedder", "errors", "load", "sink", "source"]

_LATER = {"Pipeline": "pipeline", "load": "pipeline", "embedder": "registry", "sink": "registry", "source": "registry"}


def __getattr__(name: str) -> object:
    """The rest is imported when it is first used: a process that only decodes pictures needs none of it."""
    if name not in _LATER:
        raise AttributeError(f"module 'seedbed' has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f"seedbed.{_LATER[name]}"), name)
    return found
