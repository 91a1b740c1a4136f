"""The Ark client against the emulated service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import pytest

from seedbed import Content, registry
from seedbed.embedders.remote import RemoteEmbedder
from seedbed.errors import ConfigError, ContentsRefused, Fatal, RowError, SeedbedError, Transient
from seedbed.protocols import CanSpend, CanStream, CanSubmit, Vectors
from seedbed.testing.ark import ArkEmulator, Faults, Limits, Settings

MODEL, LATER = "doubao-embedding-vision-250615", "doubao-embedding-vision-251215"
KEY = "sk-never-shown"
Make = Callable[..., tuple[RemoteEmbedder, ArkEmulator]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.delenv("ARK_API_KEY", raising=False)
    with ExitStack() as stack:

        def build(
            told: Settings | None = None, model: str = MODEL, options: str = "", **settings: Any
        ) -> tuple[RemoteEmbedder, ArkEmulator]:
            emulator = ArkEmulator(told)
            url = stack.enter_context(emulator.serving())
            given = {"api_key": KEY, "rpm": 1_000_000, "tpm": 0, **settings}
            made = registry.embedder(f"ark:{model}?endpoint={url}{options}", **given)
            assert isinstance(made, RemoteEmbedder)
            stack.enter_context(closing(made))
            return made, emulator

        yield build


def texts(*words: str) -> list[Content]:
    return [Content.of(text) for text in words]


def rows(count: int) -> list[Content]:
    return texts(*(f"row {number}" for number in range(count)))


def test_vectors_are_of_unit_length_in_the_order_asked_for(make: Make) -> None:
    embedder, emulator = make()
    asked = rows(300)
    vectors = embedder.embed(asked)
    assert vectors.shape == (300, 2048)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(embedder.embed(asked[7:8])[0], vectors[7], atol=1e-6)
    assert embedder.usage.calls == emulator.calls == 301
    assert embedder.usage.tokens == emulator.tokens
    assert embedder.space.model == f"ark:{MODEL}"
    assert all(isinstance(embedder, ability) for ability in (CanStream, CanSubmit, CanSpend))


@pytest.mark.parametrize("told", [Settings(base64=False), Settings(data_as_list=True)])
def test_numbers_where_there_is_no_base64_and_the_older_answer(make: Make, told: Settings) -> None:
    embedder, _ = make(told)
    plain, _ = make()
    np.testing.assert_allclose(embedder.embed(rows(3)), plain.embed(rows(3)), atol=1e-6)


def test_1024_dimensions_are_asked_for_and_not_cut(make: Make) -> None:
    cut, emulator = make(dimensions=1024)
    whole, _ = make()
    assert cut.embed(rows(1)).shape == (1, 1024)
    assert emulator.recent[-1]["dimensions"] == 1024
    first = whole.embed(rows(1))[0, :1024]
    assert float(cut.embed(rows(1))[0] @ first / np.linalg.norm(first)) < 0.99


def test_each_family_is_told_what_a_text_is_for_in_its_own_way(make: Make) -> None:
    embedder, emulator = make()
    embedder.embed(texts("shoes"))
    embedder.embed(texts("shoes"), "query")
    document, query = (asked["input"][0]["text"] for asked in emulator.recent)
    assert document == "shoes"
    assert query == "根据这个问题，找到能回答这个问题的相应文本或图片：shoes"
    assert "instructions" not in emulator.recent[0]
    later, emulator = make(model=LATER, query_instruction="Find shoes.")
    later.embed(texts("shoes"))
    later.embed(texts("shoes"), "query")
    assert [asked["input"][0]["text"] for asked in emulator.recent] == ["shoes", "shoes"]
    assert [asked["instructions"] for asked in emulator.recent] == [
        "Instruction:Compress the text into one word.\nQuery:",
        "Target_modality: text.\nInstruction:Find shoes.\nQuery:",
    ]


def test_an_endpoint_needs_its_family_and_the_right_one(make: Make) -> None:
    told = Settings(endpoints={"ep-1": LATER})
    with pytest.raises(ConfigError, match="does not tell what model") as raised:
        make(told, model="ep-1")
    assert raised.value.setting == "embedder.family"
    right, _ = make(told, model="ep-1", family=LATER)
    assert right.space.model == f"ark:{LATER}"
    assert right.embed(rows(2)).shape == (2, 2048)
    wrong, _ = make(told, model="ep-1", family=MODEL)
    with pytest.raises(Fatal, match=f"answered by {LATER}"):
        wrong.embed(rows(1))


@pytest.mark.parametrize(
    ("model", "settings", "setting"),
    [
        ("doubao-embeding-vision-250615", {}, "embedder.url"),
        (MODEL, {"dimensions": 512}, "embedder.dimensions"),
        (MODEL, {"rpm": -1}, "embedder.rpm"),
        (MODEL, {"family": "bert"}, "embedder.family"),
        (MODEL, {"api_key": "two words"}, "embedder.api_key"),
        (MODEL, {"api_key": "schlüssel"}, "embedder.api_key"),
        (MODEL, {"api_key": "abc123\n"}, "embedder.api_key"),
    ],
)
def test_wrong_settings_are_named_and_keys_not_shown(model: str, settings: dict[str, Any], setting: str) -> None:
    with pytest.raises(ConfigError) as raised:
        registry.embedder(f"ark:{model}", **settings)
    assert raised.value.setting == setting
    assert "api_key" not in settings or str(settings["api_key"]).strip() not in str(raised.value)


# --- trouble -----------------------------------------------------------------------------------------


def test_what_passes_is_sent_again_and_nothing_is_lost_or_paid_twice(make: Make) -> None:
    faults = Faults(share_429=0.1, share_500=0.05, seed=1)
    faults.next.extend(["drop", "html", "ServerOverloaded", "truncated", "html_200"])
    embedder, emulator = make(Settings(faults=faults))
    vectors = embedder.embed(rows(400))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert emulator.calls == len(set(emulator.texts)) == 400


@pytest.mark.parametrize(
    ("fault", "kind", "words", "setting"),
    [
        ("AuthenticationError", Fatal, "check the key", "embedder.api_key"),
        ("AccountOverdueError", Fatal, "overdue", "embedder.api_key"),
        ("ModelNotOpen", Fatal, "activate", "embedder.url"),
        ("QuotaExceeded", Fatal, "quota", "embedder.api_key"),
        ("SetLimitExceeded", Fatal, "quota", "embedder.api_key"),
        ("wrong_dimension", Fatal, "2024 dimensions, 2048", "embedder.dimensions"),
        ("InvalidParameter.model", Fatal, "InvalidParameter.model", "embedder.url"),
    ],
)
def test_what_no_second_try_mends_stops_the_run(
    make: Make, fault: str, kind: type[SeedbedError], words: str, setting: str
) -> None:
    faults = Faults(texts={"row 50": fault})
    embedder, emulator = make(Settings(faults=faults))
    with pytest.raises(kind, match=words) as raised:
        embedder.embed(rows(2000))
    assert raised.value.setting == setting
    assert emulator.calls < 1000
    assert KEY not in str(raised.value)


def test_what_was_in_flight_is_kept_when_the_key_expires(make: Make) -> None:
    embedder, emulator = make(Settings(faults=Faults(expire_after=500)))
    kept: list[int] = []
    stream = embedder.stream(rows(2000))
    with pytest.raises(Fatal, match="AuthenticationError"):
        kept.extend(position for portion in stream for position in portion.positions)
    assert len(kept) == len(set(kept)) == emulator.calls == 500


def test_a_bad_content_is_refused_by_itself(make: Make) -> None:
    faults = Faults(texts={"row 3": "InputTextSensitiveContentDetected", "row 5": "nan", "row 6": "zeros"})
    embedder, _ = make(Settings(faults=faults))
    asked = [*rows(7), Content.of("lone \ud800"), Content.of("long " * 140_000)]
    with pytest.raises(ContentsRefused) as raised:
        embedder.embed(asked)
    assert set(raised.value.refused) == {3, 5, 6, 7, 8}
    reasons = raised.value.refused
    assert "Sensitive" in reasons[3]
    assert "NaN" in reasons[5]
    assert "zeros" in reasons[6]
    assert "surrogate" in reasons[7]
    assert "OutofContext" in reasons[8]
    np.testing.assert_allclose(np.linalg.norm(raised.value.vectors[[0, 1, 2, 4]], axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_server_that_does_not_end_its_answer_is_left(make: Make, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seedbed.embedders.calls._TRIES", 2)
    embedder, _ = make(Settings(faults=Faults(texts={"row": fault})), options="&seconds=0.5")
    started = time.monotonic()
    with pytest.raises(Transient, match=r"no whole answer within 0\.5 s"):
        embedder.embed(rows(1))
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(("fault", "words"), [("oversized", "larger than"), ("html_200", "is no embedding: '<html>")])
def test_what_is_no_answer_says_what_came(make: Make, fault: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seedbed.embedders.calls._TRIES", 2)
    monkeypatch.setattr("seedbed.embedders.transport.MOST_BYTES", 10_000_000)
    embedder, _ = make(Settings(faults=Faults(texts={"row": fault})))
    with pytest.raises(Transient, match=words):
        embedder.embed(rows(1))


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [("http://no-such-host.invalid/api/v3", "is not known"), ("http://127.0.0.1:9/api", "onnect")],
)
def test_no_server_there(endpoint: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seedbed.embedders.calls._TRIES", 2)
    with (
        closing(registry.embedder(f"ark:{MODEL}?endpoint={endpoint}", api_key=KEY)) as embedder,
        pytest.raises(Transient, match=words) as raised,
    ):
        embedder.embed(rows(1))
    assert KEY not in repr(raised.value) + repr(embedder) + repr(vars(embedder)["_api"])


def test_retry_after_is_waited_for(make: Make) -> None:
    faults = Faults()
    faults.next.append("ServerOverloaded")
    embedder, _ = make(Settings(faults=faults, retry_after=2))
    started = time.monotonic()
    embedder.embed(rows(1))
    assert 2 <= time.monotonic() - started < 15


def test_closing_a_stream_gives_up_what_was_not_asked_for(make: Make) -> None:
    embedder, emulator = make(Settings(latency=0.05))
    stream = embedder.stream(rows(5000))
    first = next(stream)
    stream.close()
    time.sleep(0.3)
    assert len(first.positions) > 0
    assert emulator.calls < 2500
    assert embedder.embed(rows(1)).shape == (1, 2048)


# --- many at once -----------------------------------------------------------------------------------


def test_equal_contents_are_asked_for_once(make: Make) -> None:
    embedder, emulator = make(Settings(latency=0.2))
    futures: list[Future[Vectors]] = [embedder.submit(Content.of("the same")) for _ in range(50)]
    other = embedder.submit(Content.of("the same"), "query")
    vectors = [future.result() for future in futures]
    assert all(np.array_equal(vectors[0], vector) for vector in vectors)
    assert not np.array_equal(vectors[0], other.result())
    assert emulator.calls == 2


def test_a_submitted_content_that_is_refused_says_so(make: Make) -> None:
    embedder, _ = make(Settings(faults=Faults(texts={"nan": "nan", "bad": "InputTextSensitiveContentDetected"})))
    for word in ("nan", "bad"):
        with pytest.raises(RowError):
            embedder.submit(Content.of(word)).result()


def test_no_more_are_in_flight_than_the_account_takes(make: Make) -> None:
    told = Settings(limits=Limits(in_flight=8), latency=0.02)
    embedder, emulator = make(told, options="&in_flight=64")
    assert embedder.embed(rows(1500)).shape == (1500, 2048)
    late = [at for at in emulator.refused_at if at > emulator.answered_at[-500]]
    assert emulator.calls == 1500
    assert len(late) < 250


def test_tokens_a_minute_are_kept_to(make: Make) -> None:
    embedder, emulator = make(Settings(limits=Limits(tpm=60_000)), tpm=60_000)
    started = time.monotonic()
    embedder.embed(texts(*(f"{number} " + "some more words " * 20 for number in range(40))))
    assert sum(emulator.refused.values()) <= 10
    assert emulator.tokens / (time.monotonic() - started + 1) < 1100


def test_a_limit_that_nobody_told_is_found(make: Make) -> None:
    embedder, emulator = make(Settings(limits=Limits(rpm=6000), latency=0.01), rpm=15_000)
    embedder.embed(rows(1500))
    begun = emulator.answered_at[0]
    late = [at for at in emulator.answered_at if at > begun + 5]
    refused = sum(at > begun + 5 for at in emulator.refused_at)
    # Of 100 a second; how near is measured elsewhere.
    assert (len(late) - 1) / (late[-1] - late[0]) > 60
    assert refused < 0.1 * len(late)


def test_several_threads_may_embed_at_once(make: Make) -> None:
    embedder, emulator = make()
    found: list[Vectors] = []
    threads = [threading.Thread(target=lambda: found.append(embedder.embed(rows(50)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.allclose(found[0], other, atol=1e-6) for other in found)
    assert emulator.calls <= 200
