"""The commands before and beside a pipeline: init, serve, demo."""

from __future__ import annotations

from pathlib import Path

import click

from seedbed.cli import cli


@cli.command()
@click.argument("url")
@click.argument("table", required=False)
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="Where to write; NAME.toml by default.")
def init(url: str, table: str | None, target: Path | None) -> None:
    """Write a commented pipeline file for TABLE of the database at URL, or for a file URL."""
    from seedbed.init import draft

    name, text = draft(url, table)
    path = target or Path(f"{name}.toml")
    if path.exists():
        raise click.UsageError(f"{path} exists already; name another with -o")
    path.write_text(text, encoding="utf-8")
    click.echo(f"wrote {path}\nnext: seedbed doctor {path}, seedbed plan {path}, seedbed sync {path}")


@cli.command()
@click.argument("folder", default="seedbed-demo", type=click.Path(path_type=Path))
def demo(folder: Path) -> None:
    """Show the whole way in FOLDER: an embedded Postgres, the packaged model, searches and edits."""
    from seedbed.demo import run

    run(folder, click.echo)
