"""A pipeline file's text: read, and where in it a setting stands."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seedbed.errors import ConfigError

Place = tuple[str | int, ...]

_NAME = r"(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')"
_DOTTED = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")


def read_text(file: Path) -> str:
    """Raises ConfigError where there is no such file, or it is no text."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no pipeline file {file}", hint="`seedbed init URL TABLE` writes one") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{file}: {error}") from error


def parse(file: Path, text: str) -> dict[str, Any]:
    """Raises ConfigError `FILE:LINE: …` for what is no TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else text.rstrip().count("\n") + 1
        raise ConfigError(f"{file}:{line}: {error}") from error


@contextmanager
def located(file: Path, text: str) -> Iterator[None]:
    """ConfigErrors within say `FILE:LINE: …` of the setting that they name, or `FILE: …` where it is not found."""
    try:
        yield
    except ConfigError as error:
        line = line_of(text, error.setting) if error.setting else None
        error.message = f"{file}:{line}: {error.message}" if line else f"{file}: {error.message}"
        raise


def line_of(text: str, setting: str) -> int | None:
    """The line of a setting such as `sink[0].url`; of the table that would hold it, where it is not there itself; None
    where neither is. A search for where people look, not a second reading of TOML."""
    wanted = _path(setting)
    best: tuple[int, int] | None = None
    places = list(_places(text))
    for line, path in places:
        depth = _depth(path, wanted)
        if depth and (best is None or depth > best[0]):
            best = depth, line
    if best is None:
        return None
    depth, line = best
    return line if depth == len(wanted) else _inside(text, places, line, str(wanted[-1]))


def _inside(text: str, places: list[tuple[int, Place]], line: int, name: str) -> int:
    """The line below `line` that says `name = ` within one value's braces, else `line`."""
    end = next((other for other, _ in places if other > line), None)
    for number, words in enumerate(text.split("\n")[line - 1 : end and end - 1], line):
        if re.search(rf"[{{,]\s*{re.escape(name)}\s*=", words):
            return number
    return line


def _path(setting: str) -> Place:
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", setting))


def _depth(path: Place, wanted: Place) -> int:
    """How much of what is wanted the path is; 0 where it leads elsewhere. `sink.url` is that of any sink."""
    if not any(isinstance(part, int) for part in wanted):
        path = tuple(part for part in path if not isinstance(part, int))
    return len(path) if path == wanted[: len(path)] else 0


def _places(text: str) -> Iterator[tuple[int, Place]]:
    """Headers and keys, by line."""
    table: Place = ()
    counts: dict[str, int] = {}
    quotes = ""
    for number, line in enumerate(text.split("\n"), 1):
        inside, quotes = quotes, _open_quotes(line, quotes)
        if inside:
            continue
        if header := _HEADER.match(line):
            table = _names(header[2])
            if header[1] == "[[":
                count = counts[header[2]] = counts.get(header[2], -1) + 1
                table = (*table, count)
            yield number, table
        elif key := _KEY.match(line):
            yield number, (*table, *_names(key[1]))


def _open_quotes(line: str, quotes: str) -> str:
    """Which multi-line string is open behind this line."""
    for mark in re.findall(r'"""|\'\'\'', line):
        if not quotes:
            quotes = mark
        elif mark == quotes:
            quotes = ""
    return quotes


def _names(dotted: str) -> Place:
    return tuple(name.strip("\"'") for name in re.findall(_NAME, dotted))
