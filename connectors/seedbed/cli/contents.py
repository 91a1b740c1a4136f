"""What a command is asked about: words, and files of pictures and video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from seedbed.content import Content, Image, Part, Video

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def media(command: F) -> F:
    """`--image F` and `--video F`, each any number of times."""
    command = click.option("--video", "videos", multiple=True, type=_FILE, metavar="F", help="A video's file.")(command)
    return click.option("--image", "images", multiple=True, type=_FILE, metavar="F", help="A picture's file.")(command)


def mixture(words: str | None, images: Sequence[Path], videos: Sequence[Path]) -> Content:
    """All of them as one content. Raises click.UsageError where there is nothing."""
    parts: list[str | Part] = [*([words] if words else []), *map(Image.read, images), *map(Video.read, videos)]
    if not parts:
        raise click.UsageError("give words, --image F or --video F")
    return Content.of(*parts)


def said(words: str | None, images: Sequence[Path], videos: Sequence[Path]) -> str:
    return ", ".join([*([words] if words else []), *(path.name for path in [*images, *videos])])
