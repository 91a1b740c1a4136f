"""A file whose decoder crashes, hangs or eats memory is one bad row."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from media.samples import picture, video
from seedbed.errors import RowError
from seedbed.media import pictures
from seedbed.media.clips import Clip, Same, Sampling
from seedbed.media.fits import Grid, Within
from seedbed.media.limits import USUAL, Limits
from seedbed.media.tasks import Frames, Picture, Thumbnail
from seedbed.media.workers import Crashed, Workers

FIT = Grid(32, 4096, 100_000)


@dataclass(frozen=True)
class Hostile:
    """Does what the file says."""

    limits: Limits = USUAL

    def __call__(self, data: bytes) -> str:
        match data:
            case b"crash":
                ctypes.string_at(0)
            case b"killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"hang":
                time.sleep(600)
            case b"eat":
                _ = b"x" * (64 << 30)
            case b"break":
                raise ZeroDivisionError("a bug of a decoder")
        return data.decode()


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(2) as made:
        yield made


def test_results_come_in_order_and_are_those_of_this_process(workers: Workers) -> None:
    files = [picture(64 + 7 * number, 48, seed=number) for number in range(20)]
    found = list(workers.map(Picture(FIT), files))
    for data, made in zip(files, found, strict=True):
        assert isinstance(made, np.ndarray)
        np.testing.assert_array_equal(made, pictures.pixels(data, FIT))


def test_a_bad_file_is_one_bad_result(workers: Workers) -> None:
    found = list(workers.map(Picture(FIT), [picture(), b"", b"<html>", picture(seed=2)]))
    assert [isinstance(one, RowError) for one in found] == [False, True, True, False]


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"crash", r"signal 11"), (b"killed", r"signal 9"), (b"hang", "more than 0.5 seconds"), (b"eat", "more memory")],
)
def test_what_breaks_a_decoder_breaks_no_more(workers: Workers, data: bytes, words: str) -> None:
    task = Hostile(Limits(patience=0.5 if data == b"hang" else 60))
    list(workers.map(task, [b"warm"] * 4))
    found = list(workers.map(task, [b"one", data, b"two", b"three"]))
    assert [one for one in found if not isinstance(one, RowError)] == ["one", "two", "three"]
    assert isinstance(found[1], RowError)
    assert words in found[1].message
    assert isinstance(found[1], Crashed) == (data != b"eat")


def test_a_bug_is_told_as_the_row_error_that_it_is(workers: Workers) -> None:
    (found,) = workers.map(Hostile(), [b"break"])
    assert isinstance(found, RowError)
    assert "ZeroDivisionError: a bug of a decoder" in found.message


def test_videos_and_thumbnails(workers: Workers) -> None:
    task = Frames(Sampling(fps=2.0), Same(Within(5000)))
    (clip,) = workers.map(task, [video()])
    assert isinstance(clip, Clip)
    assert clip.frames.shape[0] == 6
    small = workers.submit(Thumbnail(64), picture(600, 400)).result()
    first = workers.submit(Thumbnail(64, video=True), video()).result()
    assert small[:3] == first[:3] == b"\xff\xd8\xff"


def test_files_are_not_taken_ahead_of_their_turn(workers: Workers) -> None:
    taken = 0

    def files() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield b"x"

    results = workers.map(Hostile(), files())
    next(results)
    assert taken <= 8


def test_processes_end_with_their_workers() -> None:
    made = Workers(1)
    (pid,) = made.map(_Pid(), [b""])
    made.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(str(pid)), 0)


@dataclass(frozen=True)
class _Pid:
    limits: Limits = USUAL

    def __call__(self, data: bytes) -> int:
        return os.getpid()
