"""The demo's rows: functions and methods of the standard library with their documentation."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import NamedTuple

# Importing these prints nothing, opens nothing and needs no screen.
_MODULES = """
abc argparse array ast asyncio base64 binascii bisect bz2 calendar cmath codecs collections colorsys compileall
concurrent.futures configparser contextlib copy csv ctypes dataclasses datetime decimal difflib dis email.message
email.utils enum fileinput fnmatch fractions ftplib functools gc getpass gettext glob gzip hashlib heapq hmac html
html.parser http.client http.cookiejar http.server imaplib importlib.metadata inspect io ipaddress itertools json
keyword linecache locale logging logging.handlers lzma mailbox math mimetypes mmap multiprocessing netrc numbers
operator os os.path pathlib pdb pickle pickletools pkgutil platform plistlib poplib posixpath pprint profile pstats
queue quopri random re reprlib rlcompleter runpy sched secrets select selectors shelve shlex shutil signal site
smtplib socket socketserver sqlite3 ssl stat statistics string stringprep struct subprocess symtable sys sysconfig
tarfile tempfile textwrap threading time timeit token tokenize trace traceback tracemalloc types typing unicodedata
unittest unittest.mock urllib.parse urllib.request urllib.robotparser uuid venv warnings wave weakref webbrowser
xml.dom.minidom xml.etree.ElementTree xmlrpc.client xmlrpc.server zipapp zipfile zipimport zlib zoneinfo
""".split()  # noqa: SIM905 - a list of strings would take 150 lines


class Function(NamedTuple):
    """One row of the demo's table."""

    module: str
    name: str
    signature: str
    documentation: str


def functions() -> Iterator[Function]:
    """Documented functions and methods, each once, in the order of module and name."""
    seen: set[tuple[str, str]] = set()
    for module in _MODULES:
        members = vars(importlib.import_module(module))
        for name in sorted(members):
            if name.startswith("_"):
                continue
            for title, function in _callables(name, members[name]):
                found = _described(module, title, function)
                if found is not None and (found.documentation, title.rpartition(".")[2]) not in seen:
                    seen.add((found.documentation, title.rpartition(".")[2]))
                    yield found


def _callables(name: str, member: object) -> Iterator[tuple[str, object]]:
    if inspect.isroutine(member):
        yield name, member
    elif inspect.isclass(member) and not issubclass(member, BaseException):
        for attribute in sorted(vars(member)):
            value = inspect.getattr_static(member, attribute)
            if not attribute.startswith("_") and inspect.isroutine(value):
                yield f"{name}.{attribute}", getattr(member, attribute)


def _described(module: str, name: str, function: object) -> Function | None:
    documentation = inspect.cleandoc(getattr(function, "__doc__", None) or "")
    if not documentation:
        return None
    try:
        signature = str(inspect.signature(function)) if callable(function) else "(…)"
    except (TypeError, ValueError):
        signature = "(…)"
    return Function(module, name, signature[:200], documentation)
