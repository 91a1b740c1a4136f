"""Dockerfiles as far as ours go: stages, their steps, and what .dockerignore leaves of the build's context."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction, its lines joined; `flags` without their dashes."""

    name: str
    text: str
    flags: dict[str, str]
    line: int

    @property
    def words(self) -> list[str]:
        """As the exec form says them, or else as a shell would divide them."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return shlex.split(self.text)


@dataclass(slots=True)
class Stage:
    base: str
    name: str
    steps: list[Step] = field(default_factory=list)

    def last(self, name: str) -> Step | None:
        return next((step for step in reversed(self.steps) if step.name == name), None)


def parse(text: str) -> list[Stage]:
    """Raises ValueError for what is no Dockerfile, with the line. Here-documents and ARG before FROM are not read."""
    stages: list[Stage] = []
    for line, instruction in _joined(text):
        name, _, rest = instruction.partition(" ")
        flags, rest = _flags(rest.strip())
        if not re.fullmatch(r"[A-Z]+", name) or not rest:
            raise ValueError(f"line {line}: {instruction!r} is no instruction")
        if name == "FROM":
            base, *more = rest.split()
            stages.append(Stage(base, more[1] if more else str(len(stages))))
        elif not stages:
            raise ValueError(f"line {line}: {name} before FROM")
        else:
            stages[-1].steps.append(Step(name, rest, flags, line))
    return stages


def _joined(text: str) -> Iterator[tuple[int, str]]:
    started, pieces = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not (line.strip() or pieces):
            continue
        started = started if pieces else number
        pieces.append(line.strip().removesuffix("\\").rstrip())
        if not line.rstrip().endswith("\\"):
            yield started, " ".join(pieces)
            pieces = []
    if pieces:
        raise ValueError(f"line {started}: it does not end")


def _flags(rest: str) -> tuple[dict[str, str], str]:
    flags = {}
    while found := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
        flags[found[1]] = found[2]
        rest = rest[found.end() :]
    return flags, rest


class Context:
    """The files below `root` that a build is given."""

    def __init__(self, root: Path, ignore: str) -> None:
        self.root = root
        lines = [line.strip() for line in ignore.splitlines()]
        rules = [line for line in lines if line and not line.startswith("#")]
        self._rules = [(not rule.startswith("!"), _pattern(rule.removeprefix("!"))) for rule in rules]
        self._kept = [rule[1:].strip("/") for rule in rules if rule.startswith("!")]

    def ignores(self, path: str) -> bool:
        """The last rule that speaks of a path, relative to the root, decides."""
        ignored = False
        for says, pattern in self._rules:
            if pattern.fullmatch(path):
                ignored = says
        return ignored

    def files(self, source: str) -> list[str]:
        """What COPY takes for one source: the file, or all of the folder."""
        start = self.root / source
        if start.is_file():
            return [] if self.ignores(source) else [source]
        return sorted(self._below(start))

    def _below(self, start: Path) -> Iterator[str]:
        for folder, folders, names in os.walk(start):
            here = Path(folder).relative_to(self.root)
            # What is ignored is not entered, unless a rule keeps something there.
            folders[:] = [
                name
                for name in folders
                if not self.ignores(inner := str(here / name))
                or any(kept.startswith((f"{inner}/", "*")) for kept in self._kept)
            ]
            yield from (path for name in names if not self.ignores(path := str(here / name)))


def _pattern(rule: str) -> re.Pattern[str]:
    """A rule's path, and all below it; `**` is any number of folders."""
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    words = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]*\])", rule.strip("/"))
    made = "".join(pieces.get(word, word if word.startswith("[") else re.escape(word)) for word in words)
    return re.compile(f"{made}(?:/.*)?")
