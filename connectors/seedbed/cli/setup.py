"""The commands before and beside a pipeline: init, serve, demo."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from seedbed.cli import cli
from seedbed.cli.contents import media, mixture


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
@click.argument("texts", nargs=-1, metavar="TEXT...")
@media
@click.option("--embedder", "url", default="local:minilm", show_default=True, help="The embedder's URL.")
@click.option("-p", "--pipeline", type=click.Path(path_type=Path), help="Take this pipeline's embedder.")
@click.option("--query", is_flag=True, help="As a query; as a document by default.")
@click.option("--json", "json_", is_flag=True, help="One JSON object on stdout and nothing else there.")
def embed(
    texts: tuple[str, ...],
    images: tuple[Path, ...],
    videos: tuple[Path, ...],
    url: str,
    pipeline: Path | None,
    query: bool,
    json_: bool,
) -> None:
    """Print the vector of each TEXT, a JSON array on a line of its own; with pictures or video, of all together."""
    import seedbed
    from seedbed.cli import output

    if images or videos or not texts:
        contents = [mixture("\n".join(texts), images, videos)]
    else:
        contents = [seedbed.Content.of(text) for text in texts]
    with ExitStack() as stack:
        if pipeline is not None:
            embedder = stack.enter_context(seedbed.load(pipeline).open()).embedder
        else:
            embedder = stack.enter_context(closing(seedbed.embedder(url)))
        vectors = embedder.embed(contents, "query" if query else "document")
        if json_:
            usage, space = embedder.usage, asdict(embedder.space)
            output.as_json({"space": space, "tokens": usage.tokens, "vectors": vectors.tolist()})
            return
    for vector in vectors:
        output.as_json(vector.tolist())


@cli.command()
@click.argument("folder", default="seedbed-demo", type=click.Path(path_type=Path))
def demo(folder: Path) -> None:
    """Show the whole way in FOLDER: an embedded Postgres, the packaged model, searches and edits."""
    from seedbed.demo import run

    run(folder, click.echo)


@cli.command("install-extension")
@click.argument("url")
@click.option("--endpoint", metavar="ADDRESS", help="Where `seedbed serve` listens: unix:/path, http:// or https://.")
@click.option("--json", "json_", is_flag=True, help="One JSON object on stdout and nothing else there.")
def install_extension(url: str, endpoint: str | None, json_: bool) -> None:
    """Create the extension `seedbed` in the database at URL, or say what is missing and how to get it."""
    from seedbed.cli import output
    from seedbed.sql.extension import install

    version = install(url, endpoint)
    if json_:
        output.as_json({"version": version, "endpoint": endpoint})
        return
    click.echo(f"the extension seedbed {version} stands")
    if endpoint is None:
        click.echo("next, where `seedbed serve` listens: INSERT INTO seedbed.endpoint VALUES ('default', 'unix:/path')")


@cli.command()
@click.argument("url")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, type=click.IntRange(1, 65535), show_default=True)
@click.option("--uds", type=click.Path(path_type=Path), help="Listen on this unix socket, and on no port.")
@click.option("--tls-cert", type=click.Path(path_type=Path, exists=True), help="A certificate: https, on TCP only.")
@click.option("--tls-key", type=click.Path(path_type=Path, exists=True), help="Its key.")
@click.option("--dimensions", type=click.IntRange(1))
@click.option("--instruction", default="", help="Put before each document.")
@click.option("--query-instruction", default="", help="Put before each query.")
@click.option("--api-keys", type=click.Path(path_type=Path), help="A file of lines NAME KEY: who may ask.")
@click.option("--cache", default="256MB", show_default=True, help="The most that vectors shared by all callers take.")
@click.option("--batch-tokens", default=32_768, type=click.IntRange(1), help="About the most of one call of a model.")
@click.option("--log", type=click.Choice(["off", "json"]), default="off", help="A line a request on stderr.")
@click.option("--tokens", default=0, type=click.IntRange(0), help="Of a service, at most so many a day (UTC).")
@click.option("--money", default=0.0, type=click.FloatRange(0), help="At most so much a day, by --price.")
@click.option("--price", default=0.0, type=click.FloatRange(0), help="Of a million tokens.")
@click.option("--ledger", help="A Postgres that keeps limits and budget for all servers that name it.")
@click.option("--allow-host", "allow_hosts", multiple=True, help="Fetch pictures from this host of a private network.")
@click.option("--max-media", default="20MB", show_default=True, help="The most that a picture or video may have.")
@click.option("--rpm", type=click.IntRange(0), help="Of a service, requests a minute; 0 for no limit.")
@click.option("--tpm", type=click.IntRange(0), help="Of a service, tokens a minute; 0 for no limit.")
@click.option("--family", help="The model behind an account's endpoint.")
def serve(
    url: str, host: str, port: int, uds: Path | None, instruction: str, query_instruction: str, **more: Any
) -> None:
    """Serve the embedder at URL (local:minilm, say) as OpenAI's /v1/embeddings and as Ark's multimodal embeddings;
    `ark:MODEL` makes a gateway, whose key is the environment's ARK_API_KEY; `emulator:` is an emulated Ark."""
    if url.startswith("emulator:"):
        from seedbed.testing.ark.serve import run as emulate

        click.echo(f"an emulated Ark on {f'unix:{uds}' if uds else f'http://{host}:{port}/api/v3'}", err=True)
        emulate(url, host=host, port=port, uds=uds)
        return
    from seedbed.server import ServeOptions, run

    if more["tls_cert"] is not None and uds is not None:
        raise click.UsageError("a unix socket needs no certificate: --tls-cert goes with --port")
    if (more["tls_cert"] is None) != (more["tls_key"] is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    settings = {"instruction": instruction, "query_instruction": query_instruction}
    for name in ("dimensions", "rpm", "tpm", "family"):
        if (given := more.pop(name)) is not None:
            settings[name] = given
    scheme = "https" if more["tls_cert"] else "http"
    click.echo(f"serving {url} on {f'unix:{uds}' if uds else f'{scheme}://{host}:{port}'}", err=True)
    run(url, settings, host=host, port=port, uds=uds, options=ServeOptions(**more))
