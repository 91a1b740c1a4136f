"""A contact sheet: a search's hits with their pictures and scores, as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pyarrow as pa

from seedbed.content import Content, Image, Part, Reference, Video
from seedbed.errors import RowError
from seedbed.identity import read_key
from seedbed.session import Session

_SIDE = 320
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fafafa }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)) }
article { background: #fff; border: 1px solid #ddd; border-radius: .5rem; padding: .75rem; overflow-wrap: anywhere }
img { width: 100%; border-radius: .25rem } b { float: right } dl { margin: .5rem 0 0 }
dt { color: #777; font-size: .8rem } dd { margin: 0 } p.none { color: #999 }
"""


def sheet(session: Session, asked: str, hits: Sequence[Mapping[str, Any]]) -> str:
    """`asked` in words and the hits of search.search. What a row's media look like is read from the source; what cannot
    be had is said in its place."""
    media = _media(session, [str(hit["id"]) for hit in hits])
    articles = "\n".join(_article(hit, media.get(str(hit["id"]), [])) for hit in hits)
    title = escape(f"{session.declaration.name}: {asked}")
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>\n'
        f"<h1>{title}</h1>\n<main>\n{articles}\n</main></html>\n"
    )


def _article(hit: Mapping[str, Any], pictures: Sequence[str]) -> str:
    fields = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in hit["payload"].items()
    )
    shown = "".join(pictures) or '<p class="none">no picture</p>'
    return f"<article>{shown}<b>{hit['score']:.3f}</b>{escape(str(hit['id']))}<dl>{fields}</dl></article>"


def _media(session: Session, ids: Sequence[str]) -> dict[str, list[str]]:
    """By hit, an element for each picture and video."""
    if not session.recipe.media or not ids:
        return {}
    keys = {read_key(shown, len(session.source.key_columns)): shown for shown in ids}
    found: dict[str, list[str]] = {}
    for page in session.source.pages(session.selection(keys=list(keys))):
        rows: pa.RecordBatch = page.rows
        if session.fetch is not None:
            rows, _ = session.fetch(page, range(len(page.keys)))
        contents = session.recipe.render(rows).contents(range(len(page.keys)))
        for key, named in zip(page.keys, contents, strict=True):
            found[keys[key]] = [_picture(session, part) for content in named for part in _media_parts(content)]
    return found


def _media_parts(content: Content) -> list[Part]:
    return [part for part in content.parts if isinstance(part, Image | Video | Reference)]


def _picture(session: Session, part: Part) -> str:
    from seedbed.media.settings import limits
    from seedbed.media.tasks import Thumbnail
    from seedbed.media.workers import shared

    data = session.library.load([part.place])[part.place] if isinstance(part, Reference) else getattr(part, "data", b"")
    if isinstance(data, RowError):
        return f'<p class="none">{escape(data.message)}</p>'
    task = Thumbnail(_SIDE, part.modality == "video", limits(session.declaration.media))
    try:
        raw = shared().submit(task, data).result()
    except RowError as error:
        return f'<p class="none">{escape(error.message)}</p>'
    return f'<img alt="{part.modality}" src="data:image/jpeg;base64,{base64.b64encode(raw).decode()}">'
