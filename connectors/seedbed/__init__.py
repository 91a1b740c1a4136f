"""Seedbed keeps vector databases in step with the rows and media they were made from."""

from seedbed import errors
from seedbed.content import Content
from seedbed.pipeline import Pipeline, load
from seedbed.registry import embedder, sink, source

__all__ = ["Content", "Pipeline", "embedder", "errors", "load", "sink", "source"]
