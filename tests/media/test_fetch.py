"""Media from the web: hostile addresses, endless answers and slow servers cost one row."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from seedbed.errors import RowError
from seedbed.media.addresses import Forbidden, check
from seedbed.media.errors import Later, Missing
from seedbed.media.fetch import Rules
from seedbed.media.library import Library, Whence
from services.web import Request, Web, serving


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as made:
        yield made


def library(**rules: Any) -> Library:
    return Library(Whence(rules=Rules(**{"allowed": ("127.0.0.1",), "seconds": 5.0, **rules})))


def got(url: str, **rules: Any) -> bytes | RowError:
    made = library(**rules)
    try:
        return made.load([url])[url]
    finally:
        made.close()


def refusal(url: str, **rules: Any) -> RowError:
    found = got(url, **rules)
    assert isinstance(found, RowError), found
    return found


def test_bytes_come_as_they_are(web: Web) -> None:
    packed = gzip.compress(b"\0" * 1000)
    assert got(web.put("/a.png", b"\x89PNG", Content_Type="text/html")) == b"\x89PNG"
    # A packed answer is not unpacked: nobody asked for one, and a bomb would be one.
    assert got(web.put("/b", packed, Content_Encoding="gzip")) == packed


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200", "0.0.0.0",
        "168.63.129.16", "224.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "fe80::1", "fc00::1", "fd00:ec2::254",
        "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "ff02::1", "::",
    ],
)  # fmt: skip
def test_no_address_but_the_public_internets(address: str) -> None:
    with pytest.raises(Forbidden) as caught:
        check(address, "host")
    assert caught.value.setting == "media.allow_hosts"


def test_public_addresses_are_no_ones_business_to_refuse() -> None:
    for address in ("93.184.216.34", "2606:2800:220:1::1", "8.8.8.8"):
        check(address, "host")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.0.0.1", "[::1]", "0"])
def test_a_private_host_is_not_even_connected_to(web: Web, host: str) -> None:
    url = f"http://{host}:{web.server_port}/a"
    refusal(url, allowed=())
    assert web.asked == []


def test_a_redirect_is_checked_as_its_beginning_is(web: Web) -> None:
    def redirect(where: str) -> str:
        return web.put("/r", b"", 302, Location=where)

    assert isinstance(refusal(redirect("http://169.254.169.254/latest/meta-data")), Forbidden)
    assert "only http and https" in refusal(redirect("file:///etc/passwd")).message
    assert isinstance(refusal(redirect(f"http://localhost:{web.server_port}/secret")), Forbidden)
    assert "redirects" in refusal(redirect("/r")).message
    web.put("/end", b"here")
    assert got(redirect("/end")) == b"here"
    assert "GET /secret" not in web.asked


def test_a_name_that_is_rebound_between_check_and_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name's server answers once with one address and then with another: only the checked one is connected to."""
    lookups: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: Any, port: Any, *arguments: Any, **more: Any) -> Any:
        if host != "media.example":
            return real(host, port, *arguments, **more)
        lookups.append(host)
        address = "127.0.0.2" if len(lookups) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    async def resolved(self: Any, host: Any, port: Any, **more: Any) -> Any:
        return rebinding(host, port)

    import uvloop

    monkeypatch.setattr(uvloop.Loop, "getaddrinfo", resolved, raising=False)
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolved)
    with serving("127.0.0.1") as inside, serving("127.0.0.2", inside.server_port) as outside:
        inside.put("/a", b"secret")
        outside.put("/a", b"public")
        url = f"http://media.example:{inside.server_port}/a"
        assert got(url, allowed=("media.example",)) == b"public"
        assert (len(lookups), inside.asked) == (1, [])
        # From now on the name is private, and its host is on no list.
        assert isinstance(refusal(url, allowed=()), Forbidden)
        assert inside.asked == []


def endless(request: Request) -> None:
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(b"x" * 65536)
    except OSError:
        request.close_connection = True


def dripping(request: Request) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    try:
        for _ in range(1000):
            request.wfile.write(b"x")
            request.wfile.flush()
            time.sleep(0.1)
    except OSError:
        request.close_connection = True


def test_an_endless_answer_ends_at_the_cap(web: Web) -> None:
    web.answers["/endless"] = endless
    assert "larger than 1,000,000 bytes" in refusal(web.url + "/endless", most_bytes=1_000_000).message
    claimed = web.put("/claimed", b"", Content_Length="5000000000")
    assert "larger than" in refusal(claimed, most_bytes=1_000_000).message


def test_a_slow_drip_ends_at_the_deadline(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seedbed.media.errors.FIRST_WAIT", 0.01)
    web.answers["/drip"] = dripping
    started = time.monotonic()
    assert isinstance(refusal(web.url + "/drip", seconds=0.5), Later)
    assert time.monotonic() - started < 10


def test_what_may_pass_is_tried_again_and_what_is_gone_is_missing(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seedbed.media.errors.FIRST_WAIT", 0.01)
    left = [503, 500]
    web.answers["/a"] = lambda request: request.say(left.pop() if left else 200, b"here")
    assert got(web.url + "/a") == b"here"
    assert isinstance(refusal(web.put("/down", b"", 503)), Later)
    assert isinstance(refusal(web.url + "/none"), Missing)
    assert isinstance(refusal(web.put("/gone", b"", 410)), Missing)
    assert "status 403" in refusal(web.put("/no", b"", 403)).message


@pytest.mark.parametrize(
    "url",
    ["ftp://host/a", "http://", "http://user:word@host/a", "http://ho st/", "http://[::1", "https://127.0.0.1:99999/"],
)
def test_what_is_no_address(url: str) -> None:
    assert isinstance(refusal(url), RowError)


def test_proxies_of_the_environment_are_ignored(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert got(web.put("/a", b"here")) == b"here"


def test_stamps_change_with_the_bytes_and_need_no_download(web: Web) -> None:
    made = library()
    stated, silent = web.put("/e", b"one", ETag='"1"'), web.put("/s", b"one")
    first = made.stamps([stated, silent])
    assert web.asked == ["HEAD /e", "HEAD /s", "GET /s"] or sorted(web.asked) == ["GET /s", "HEAD /e", "HEAD /s"]
    assert made.stamps([stated, silent]) == first
    web.put("/e", b"two", ETag='"2"')
    web.put("/s", b"two")
    second = made.stamps([stated, silent])
    assert second[stated] != first[stated]
    assert second[silent] != first[silent]
    web.answers["/e"] = lambda request: request.say(405 if request.command == "HEAD" else 200, b"three")
    assert isinstance(made.stamps([stated])[stated], bytes)
    made.close()


def test_without_revalidation_an_address_is_its_own_stamp(web: Web) -> None:
    made = Library(Whence(revalidate=False))
    assert made.stamps([web.url + "/a"]) == {web.url + "/a": f"{web.url}/a".encode()}
    assert web.asked == []
    made.close()
