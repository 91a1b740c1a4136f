"""The demo's part with pictures: a table of photos, found by words, by another picture and by a clip."""

from __future__ import annotations

from pathlib import Path

from psycopg import Connection
from psycopg.rows import TupleRow

from seedbed import Content, load
from seedbed.content import Image, Video
from seedbed.demo import STORES, Say, command, shown_sync
from seedbed.demo.photos import Photo, clip, photos
from seedbed.errors import Fatal

FILE = """\
name = "photos"

[source]
url = "pgvector+embedded:./postgres"
table = "photos"

[content.caption]
text = "{caption}"

[content.picture]
image = "picture"

[embedder]
url = "conse:minilm"

[[sink]]
name = "postgres"
url = "pgvector+embedded:./postgres"
collection = "photo_vectors"
payload = ["title", "caption"]

[[sink]]
name = "qdrant"
url = "qdrant+embedded:./qdrant-photos"
payload = ["title", "caption"]

[[sink]]
name = "milvus"
url = "milvus+embedded:./milvus-photos"
payload = ["title", "caption"]
"""
WORDS = "a cat"
CAT = "Chelsea"


def run(folder: Path, connection: Connection[TupleRow], say: Say) -> None:
    """Leaves a second pipeline and a contact sheet in `folder`."""
    file = folder / "photos.toml"
    if not file.exists():
        file.write_text(FILE, encoding="utf-8")
    cat = _fill(connection)
    (folder / "cat.jpg").write_bytes(cat.data)
    (folder / "cat.mp4").write_bytes(clip(cat))
    shown_sync(file, say)
    pipeline = load(file)
    say(f'\n>>> photos = seedbed.load("{file}")')
    for store in STORES:
        _expect(pipeline.search(WORDS, 1, vector="picture", sink=store), f'"{WORDS}", vector="picture"', store, say)
    picture, video = Content.of(Image(cat.data)), Content.of(Video.read(folder / "cat.mp4"))
    _expect(pipeline.search(picture, 1, vector="caption"), 'Image.read("cat.jpg"), vector="caption"', STORES[0], say)
    _expect(pipeline.search(video, 1, vector="picture"), 'Video.read("cat.mp4"), vector="picture"', STORES[0], say)
    say("")
    command(["search", str(file), WORDS, "-k", "4", "--html", str(folder / "cat.html")], say)


def _expect(found: list[dict[str, object]], asked: str, store: str, say: Say) -> None:
    (hit,) = found
    payload = hit["payload"]
    say(f">>> photos.search({asked}, sink={store!r}, k=1)\n{hit['score']:.3f}  {payload}")
    if not isinstance(payload, dict) or payload["title"] != CAT:
        raise Fatal(f"the demo expected {asked} to find {CAT} in {store}, and found {payload}")


def _fill(connection: Connection[TupleRow]) -> Photo:
    """Fills `photos` anew, the same every time; which of them is the cat's."""
    found = photos()
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(
            "create table if not exists photos (id bigint primary key, title text not null, caption text not null, "
            "picture bytea not null)"
        )
        cursor.execute("truncate photos")
        cursor.executemany("insert into photos values (%s, %s, %s, %s)", found)
    return next(photo for photo in found if photo.title == CAT)
