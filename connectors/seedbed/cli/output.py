"""What people see: progress on a terminal, plain lines elsewhere, one JSON object with `--json`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import orjson

from seedbed.errors import SeedbedError
from seedbed.report import PlanReport, SyncReport


def as_json(value: object) -> None:
    click.echo(orjson.dumps(value).decode())


def failure(error: SeedbedError, *, as_json: bool) -> None:
    """One line of what is wrong and one of what to do; with `--json` the error object, on stdout."""
    if as_json:
        click.echo(orjson.dumps({"error": error.as_dict()}).decode())
        return
    where = " ".join(f"[{name} {value}]" for name, value in (("row", error.key), ("setting", error.setting)) if value)
    click.secho(f"seedbed: {error.message} {where}".rstrip(), fg="red", err=True)
    if error.hint:
        click.echo(f"  → {error.hint}", err=True)


def pairs(values: dict[str, Any]) -> str:
    """`3 new, 5 changed`: the counts that are not zero."""
    shown = [f"{value:,} {name.replace('_', ' ')}" for name, value in values.items() if value]
    return ", ".join(shown) or "nothing to do"


def estimate(report: PlanReport) -> str:
    """`, about 0.31 CNY`, or the range of tokens and cost where little is known yet."""
    if report.tokens_range is None:
        return "" if report.cost is None else f", about {report.cost:.2f} {report.currency}"
    words = " (estimated {:,} to {:,} tokens".format(*report.tokens_range)
    if report.cost_range is not None:
        words += ", {:.2f} to {:.2f} ".format(*report.cost_range) + report.currency
    return words + ")"


@contextmanager
def progress(estimate: Callable[[], int | None], *, quiet: bool) -> Iterator[Callable[[SyncReport], None]]:
    """Yields what a run calls with its report: a bar on a terminal, a line every ten seconds elsewhere."""
    if quiet:
        yield lambda report: None
    elif sys.stderr.isatty():
        with _bar(estimate()) as show:
            yield show
    else:
        yield _lines()


@contextmanager
def _bar(total: int | None) -> Iterator[Callable[[SyncReport], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=total, rate="")
        started = time.monotonic()

        def show(report: SyncReport) -> None:
            rate = report.read / max(time.monotonic() - started, 1e-9)
            bar.update(
                task,
                completed=report.read,
                description=f"{report.upserted:,} upserted",
                rate=f"{report.read:,} rows · {rate:,.0f}/s · {report.tokens:,} tokens",
            )

        yield show


def _lines() -> Callable[[SyncReport], None]:
    started = last = time.monotonic()

    def show(report: SyncReport) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= 10:
            last = now
            rate = report.read / (now - started)
            click.echo(
                f"{report.read:,} read, {report.upserted:,} upserted, {report.tokens:,} tokens, {rate:,.0f} rows/s",
                err=True,
            )

    return show


def sync_report(report: SyncReport) -> None:
    counts = report.as_dict()
    names = ("read", "embedded", "cached", "upserted", "deleted", "skipped", "failed", "tokens")
    cost = "" if report.cost is None else f", {report.cost:,.4f} {report.currency}".rstrip()
    click.echo(f"{pairs({name: counts[name] for name in names})}{cost} in {report.seconds:.1f} s")
    for name, sink in report.sinks.items():
        if sink.error:
            click.secho(f"sink {name}: {sink.error} ({sink.behind:,} rows behind)", fg="red", err=True)
    if report.first_failure:
        click.secho(f"failed rows keep their old vectors; the first: {report.first_failure}", fg="yellow", err=True)
    if report.stopped:
        click.secho("stopped before its end; run again to go on", fg="yellow", err=True)
    if report.refused is not None:
        failure(report.refused, as_json=False)


def hits(found: list[dict[str, Any]]) -> None:
    for hit in found:
        payload = "  ".join(f"{name}={_short(value)}" for name, value in hit["payload"].items())
        click.echo(f"{hit['score']:.3f}  {hit['id']}  {payload}")
    if not found:
        click.echo("no hits")


def _short(value: object, width: int = 60) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= width else text[: width - 1] + "…"
