"""Media in folders and buckets: nothing that lies outside the roots is opened, whatever leads there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seedbed.errors import RowError
from seedbed.media.errors import Missing
from seedbed.media.places import Roots


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    (photos / "a.jpg").write_bytes(b"a")
    (photos / "deep" / "b.jpg").write_bytes(b"bb")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "photos-private").mkdir()
    (tmp_path / "photos-private" / "c.jpg").write_bytes(b"c")
    return photos


def roots(folder: Path, most: int = 100) -> Roots:
    return Roots([str(folder)], most)


def test_paths_below_a_root(folder: Path) -> None:
    made = roots(folder)
    assert made.read("a.jpg") == made.read(str(folder / "a.jpg")) == made.read(f"file://{folder}/a.jpg") == b"a"
    assert made.read("deep/../deep/b.jpg") == b"bb"
    stamp = made.stamp("a.jpg")
    assert stamp == made.stamp("a.jpg")
    os.utime(folder / "a.jpg", (1, 1))
    assert stamp != made.stamp("a.jpg")


@pytest.mark.parametrize(
    "place",
    [
        "../../etc/passwd", "/etc/passwd", "../secret", "deep/../../secret", "file:///etc/passwd", "file://../secret",
        "../photos-private/c.jpg", "~root/.bashrc", "/proc/self/environ", "s3://bucket/a.jpg", "", ".", "a.jpg\0.png",
    ],
)  # fmt: skip
def test_paths_outside_are_refused(folder: Path, place: str) -> None:
    for verb in ("read", "stamp"):
        with pytest.raises(RowError):
            getattr(roots(folder), verb)(place)


def test_links_are_followed_to_where_they_lead(folder: Path) -> None:
    (folder / "out").symlink_to(folder.parent / "secret")
    (folder / "up").symlink_to(folder.parent)
    (folder / "in").symlink_to(folder / "deep" / "b.jpg")
    for place in ("out", "up/secret", "up/photos-private/c.jpg"):
        with pytest.raises(RowError, match="does not lie below"):
            roots(folder).read(place)
    assert roots(folder).read("in") == roots(folder).read("up/photos/deep/b.jpg") == b"bb"


def test_a_root_may_itself_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert Roots([str(tmp_path / "link")], 100).read("a.jpg") == b"a"


def test_what_is_no_plain_file_and_what_is_not_there(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(RowError, match="no regular file"):
        roots(folder).read("pipe")
    with pytest.raises(RowError, match="no regular file"):
        roots(folder).read("deep")
    with pytest.raises(Missing):
        roots(folder).read("none.jpg")
    with pytest.raises(RowError, match="larger than 1 bytes"):
        roots(folder, most=1).read("deep/b.jpg")
    with pytest.raises(RowError, match="does not lie below") as caught:
        Roots([], 100).read("a.jpg")
    assert caught.value.setting == "media.roots"


def test_a_folder_that_becomes_a_link_between_check_and_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "b.jpg").write_bytes(b"secret")
    real = os.open

    def swapped(path: Any, *arguments: Any, **more: Any) -> int:
        if (folder / "deep").is_dir() and not (folder / "deep").is_symlink():
            (folder / "deep").rename(folder / "moved")
            (folder / "deep").symlink_to(folder.parent / "elsewhere")
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(RowError, match="does not lie below"):
        roots(folder).read("deep/b.jpg")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    boto3 = pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    before = dict(os.environ)
    os.environ.update(
        AWS_ENDPOINT_URL=endpoint, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_DEFAULT_REGION="us-east-1"
    )
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="shop")
    yield client
    server.stop()
    os.environ.clear()
    os.environ.update(before)


def test_buckets(bucket: Any) -> None:
    bucket.put_object(Bucket="shop", Key="photos/a.jpg", Body=b"a")
    bucket.put_object(Bucket="shop", Key="private/b.jpg", Body=b"b")
    made = Roots(["s3://shop/photos"], 100)
    assert made.read("s3://shop/photos/a.jpg") == b"a"
    stamp = made.stamp("s3://shop/photos/a.jpg")
    bucket.put_object(Bucket="shop", Key="photos/a.jpg", Body=b"A")
    assert made.stamp("s3://shop/photos/a.jpg") != stamp
    assert made.read("s3://shop/photos/a.jpg") == b"A"
    for place in (
        "s3://shop/private/b.jpg",
        "s3://shop/photos/../private/b.jpg",
        "s3://shop/photos-x/a",
        "gs://shop/a",
    ):
        with pytest.raises(RowError, match="does not lie below"):
            made.read(place)
    with pytest.raises(Missing):
        made.read("s3://shop/photos/none.jpg")
    bucket.put_object(Bucket="shop", Key="photos/large", Body=b"x" * 200)
    with pytest.raises(RowError, match="larger than"):
        made.read("s3://shop/photos/large")
