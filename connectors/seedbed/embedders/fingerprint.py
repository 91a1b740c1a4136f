"""A digest of the files that decide a model's vectors, remembered by size and time of change."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import orjson
from platformdirs import user_cache_dir

_NAMES = {
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
}
_TOKENIZER_MODEL = ".model"


def fingerprint(folder: Path) -> str:
    """SHA-256 in hex over names and digests of weights, configuration and tokenizer files, below the folder too.

    Files' digests are kept in the user's cache folder by (path, size, mtime), so that hundreds of megabytes are
    read once. Raises OSError for a file that cannot be read.
    """
    store = Path(user_cache_dir("seedbed")) / "fingerprints.json"
    known = _read(store)
    digests, fresh = {}, {}
    for file in deciding_files(folder):
        stat = file.stat()
        stamp = f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}"
        digest = known.get(stamp)
        if digest is None:
            with file.open("rb") as opened:
                digest = fresh[stamp] = hashlib.file_digest(opened, "sha256").hexdigest()
        digests[file.relative_to(folder).as_posix()] = digest
    if fresh:
        _write(store, fresh)
    return hashlib.sha256(orjson.dumps(digests, option=orjson.OPT_SORT_KEYS)).hexdigest()


def deciding_files(folder: Path) -> list[Path]:
    """Sorted. Of the two forms of weights, safetensors wins, as it does when loading; other runtimes' copies
    (`onnx/`, `openvino/`) do not count."""
    places = [folder, *(place for place in folder.iterdir() if place.is_dir() and place.name[:1].isdigit())]
    files: list[Path] = []
    for place in places:
        here = [file for file in place.iterdir() if file.is_file()]
        suffix = ".safetensors" if any(file.suffix == ".safetensors" for file in here) else ".bin"
        files += [f for f in here if f.name in _NAMES or f.suffix in (suffix, _TOKENIZER_MODEL)]
    return sorted(files)


def _read(store: Path) -> dict[str, str]:
    try:
        known = orjson.loads(store.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(store: Path, fresh: dict[str, str]) -> None:
    """Replaces the file as a whole: of two writers the later wins, and what the other knew is read again. A cache
    folder that cannot be written costs the time of hashing, nothing else."""
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=store.parent, delete=False) as file:
            file.write(orjson.dumps(_read(store) | fresh))
        os.replace(file.name, store)
    except OSError:
        return
