"""The command line. Each command imports what it needs when it runs, so that `--help` and `plan` stay quick."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from seedbed.cli import output
from seedbed.errors import SeedbedError


class _Group(click.Group):
    """Lists commands in the order of their use, and answers errors in one form."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="seedbed")
def cli() -> None:
    """Keeps vector databases in step with the rows and media they were made from.

    P is a pipeline file (TOML). Exit status: 0 done, 1 failed, 2 usage, 3 done with rows newly failed,
    5 stopped by a brake or a refusal.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line; the exit statuses are those of the errors' tree."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        status = cli.main(given, prog_name="seedbed", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SeedbedError as error:
        output.failure(error, as_json="--json" in given)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


from seedbed.cli import commands, setup  # noqa: E402 - they register their commands on `cli`

__all__ = ["cli", "commands", "main", "setup"]
