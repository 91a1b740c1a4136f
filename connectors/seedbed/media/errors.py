"""What may be wrong with where a picture or video lies."""

from __future__ import annotations

from seedbed.errors import RowError


class Missing(RowError):
    """There is nothing there: the pipeline says whether its row goes without."""


class Later(RowError):
    """It could not be had now: another time it may."""
