"""The verbs over a pipeline."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from seedbed.cli import cli, output
from seedbed.cli.contents import media, mixture, said
from seedbed.content import MODALITIES

PIPELINE = click.argument("pipeline", metavar="P", type=click.Path(path_type=Path))
JSON = click.option("--json", "json_", is_flag=True, help="One JSON object on stdout and nothing else there.")


@cli.command()
@PIPELINE
@JSON
def doctor(pipeline: Path, json_: bool) -> int:
    """Check connections, rights, extensions and the space; write nothing."""
    from seedbed import load
    from seedbed.status import doctor as examine

    with load(pipeline).open() as session:
        checks = examine(session)
    if json_:
        output.as_json({"ok": all(check.ok for check in checks), "checks": [check._asdict() for check in checks]})
    else:
        for check in checks:
            click.echo(f"{'ok    ' if check.ok else 'FAILED'} {check.what}: {check.says}")
            if check.hint and not check.ok:
                click.echo(f"       → {check.hint}")
    return 0 if all(check.ok for check in checks) else 1


@cli.command()
@PIPELINE
@JSON
def plan(pipeline: Path, json_: bool) -> None:
    """Show what `sync` would do and cost; write nothing, call no model."""
    from seedbed import load

    report = load(pipeline).plan()
    if json_:
        output.as_json(report.as_dict())
        return
    counts = report.as_dict()
    names = ("new", "changed", "payload_changed", "unchanged", "deleted", "skipped", "failed", "tokens")
    click.echo(output.pairs({name: counts[name] for name in names}) + output.estimate(report))


@cli.command()
@PIPELINE
@click.argument("more_keys", nargs=-1, metavar="")
@click.option("--limit", type=click.IntRange(1), help="At most so many changed rows; such a run never deletes.")
@click.option("--keys", metavar="K…", help="Only the rows of these keys; such a run never deletes.")
@click.option("--where", help="Only the rows of this condition; such a run never deletes.")
@click.option("--full", is_flag=True, help="Write every row anew, from the cache where it can.")
@click.option("--allow-deletes", is_flag=True, help="Delete even past [limits] max_delete.")
@click.option("--allow-reembed", is_flag=True, help="Embed anew even past [limits] max_reembed.")
@click.option("--follow", is_flag=True, help="Go on as changes are queued, until stopped (after `watch`).")
@click.option("--runner", type=click.Choice(["ray"]), help="Divide the run among Ray's actors.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="With --runner: how many.")
@click.option("--gpus", type=click.FloatRange(0), default=0.0, help="With --runner: of each worker.")
@click.option("--address", help="With --runner: the cluster's; by default Ray is started here.")
@JSON
def sync(
    pipeline: Path,
    more_keys: tuple[str, ...],
    keys: str | None,
    follow: bool,
    runner: str | None,
    workers: int,
    gpus: float,
    address: str | None,
    json_: bool,
    **options: Any,
) -> int:
    """Bring every sink in step with the source."""
    from seedbed import load

    if more_keys and keys is None:
        raise click.UsageError(f"unexpected argument {more_keys[0]!r}")
    narrowed = keys is not None or options["limit"] is not None or options["where"] is not None
    if narrowed and (follow or runner):
        raise click.UsageError(f"{'--follow' if follow else '--runner'} goes with no choice of rows")
    if follow and runner:
        raise click.UsageError("--follow goes with no --runner")
    made = load(pipeline)
    if keys is not None:
        options["keys"] = _canonical(made, [keys, *more_keys])
    if follow:
        return _follow(made, options, json_=json_)
    if runner:
        chosen = {name: options[name] for name in ("full", "allow_deletes", "allow_reembed")}
        return _ray(pipeline, {"workers": workers, "gpus": gpus, "address": address, **chosen}, json_=json_)
    with _stopping() as stop, output.progress(lambda: _estimate(made), quiet=json_) as show:
        report = made.sync(progress=show, stop=stop, **options)
    if json_:
        output.as_json(report.as_dict())
    else:
        output.sync_report(report)
    return report.exit_code


def _ray(pipeline: Path, options: dict[str, Any], *, json_: bool) -> int:
    from seedbed.ray_runner import run

    with _stopping() as stop, output.progress(lambda: None, quiet=json_) as show:
        found = run(pipeline, progress=show, stop=stop, **options)
    if json_:
        output.as_json(found.as_dict())
    else:
        output.sync_report(found.report)
    return found.report.exit_code


def _follow(made: Any, options: dict[str, Any], *, json_: bool) -> int:
    def each(done: Any) -> None:
        if json_:
            output.as_json(done.as_dict())
        else:
            output.sync_report(done.report)
            click.echo(f"{done.waiting:,} changes waiting, the oldest for {done.lag:.1f} s")

    with _stopping() as stop:
        report = made.follow(
            each=each, troubled=lambda error: output.failure(error, as_json=json_), stop=stop, **options
        )
    return report.exit_code if report.refused is not None else 0


@cli.command()
@PIPELINE
@JSON
def watch(pipeline: Path, json_: bool) -> None:
    """Have the source's database queue what changes, by triggers on the table (with changes = "queue")."""
    from seedbed import load

    made = load(pipeline)
    made.watch()
    if json_:
        output.as_json({"watched": made.name})
    else:
        click.echo(f"changes of {made.declaration.source.table} are queued from now on; the next sync reads all rows")
        if made.declaration.source.changes != "queue":
            click.echo('note: set changes = "queue" in [source], or nobody works the queue off')


@cli.command()
@PIPELINE
@JSON
def unwatch(pipeline: Path, json_: bool) -> None:
    """Take the triggers away, and what is queued with them."""
    from seedbed import load

    ended = load(pipeline).unwatch()
    if json_:
        output.as_json({"unwatched": ended})
    else:
        click.echo("nothing is queued any more" if ended else "nothing was being queued")


@cli.command()
@PIPELINE
@click.argument("words", required=False)
@media
@click.option("-k", default=10, type=click.IntRange(1, 1000), show_default=True, help="How many rows.")
@click.option("--filter", "filters", multiple=True, metavar="k=v", help="k=v, k>=v, k<v, … or k=v1,v2; repeatable.")
@click.option("--tenant", help="Only this tenant's rows.")
@click.option("--sink", help="Which sink to ask; the first by default.")
@click.option("--vector", help="Which of several named vectors to ask; all by default, fused by rank.")
@click.option("--modality", type=click.Choice(MODALITIES), help="Only what was made from text, image or video.")
@click.option(
    "--calibrated", is_flag=True, help="Texts and pictures in one list, by how far each stands above its kind."
)
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write a contact sheet.")
@JSON
def search(
    pipeline: Path,
    words: str | None,
    images: tuple[Path, ...],
    videos: tuple[Path, ...],
    k: int,
    filters: tuple[str, ...],
    html: Path | None,
    json_: bool,
    **options: Any,
) -> None:
    """Find the rows nearest to WORDS, to pictures and video, or to all of them together."""
    from seedbed import load
    from seedbed.cli.filters import parse
    from seedbed.search import search as find

    asked = mixture(words, images, videos)
    with load(pipeline).open() as session:
        found = find(session, asked, k, filter=parse(filters), **options)
        if html is not None:
            from seedbed.sheet import sheet

            html.write_text(sheet(session, said(words, images, videos), found), encoding="utf-8")
            click.echo(f"wrote {html}", err=True)
    if json_:
        output.as_json({"hits": found})
    else:
        output.hits(found)


@cli.command()
@PIPELINE
@JSON
def status(pipeline: Path, json_: bool) -> None:
    """Show what stands, what failed and what the last runs did."""
    from seedbed import load

    found = load(pipeline).status()
    if json_:
        output.as_json(found)
        return
    for name, sink in found["sinks"].items():
        doubt = f", {sink['in_doubt']:,} in doubt after a crash" if sink["in_doubt"] else ""
        behind = f", {sink['behind']:,} behind" if sink["behind"] else ""
        step = f", in step {sink['in_step']}" if sink["in_step"] else ""
        cost = f", {sink['upserted']:,} written in {sink['seconds']:,.1f} s" if sink["seconds"] else ""
        click.echo(f"sink {name}: {sink['rows']:,} rows in {sink['collection']}{doubt}{behind}{step}{cost}")
        if sink["error"]:
            click.echo(f"sink {name}: its last run failed: {sink['error']}")
    for run in found["runs"]:
        counts = {n: run.get(n, 0) for n in ("read", "embedded", "cached", "upserted", "deleted", "failed")}
        click.echo(f"run {run['started']}: {run['outcome'] or 'running'} — {output.pairs(counts)}")
    if queue := found.get("queue"):
        click.echo(
            f"queue: {queue['changes']:,} changes, {queue['taken']:,} taken, the oldest {queue['oldest']:.0f} s old"
        )
    for failed in found["failed"]:
        click.echo(f"failed row {failed['key']}: {failed['error']}")
    for note in found["notes"]:
        click.echo(f"note: {note}")


@cli.command()
@PIPELINE
@JSON
def adopt(pipeline: Path, json_: bool) -> None:
    """Rebuild an empty ledger from the collections, with no embedding."""
    from seedbed import load

    adopted = load(pipeline).adopt()
    if json_:
        output.as_json({"adopted": adopted})
    else:
        for name, rows in adopted.items():
            click.echo(f"sink {name}: {rows:,} rows adopted")


def _canonical(made: Any, keys: list[str]) -> list[str]:
    from seedbed.identity import read_key

    with made.open() as session:
        columns = len(session.source.key_columns)
    return [read_key(key, columns) for key in keys]


def _estimate(made: Any) -> int | None:
    with made.open() as session:
        rows: int | None = session.source.estimate()
        return rows


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C stop a run at its next batch; a second Ctrl-C at once."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
