"""Which addresses may be fetched from: those of the public internet, and hosts that the pipeline names."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from seedbed.errors import RowError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_METADATA = {ipaddress.ip_address("168.63.129.16")}
"""Public in form, and yet a cloud's own service to its machines (Azure's wire server)."""


class Forbidden(RowError):
    """An address that is nobody's business to fetch from."""


def check(address: str, host: str) -> None:
    """Raises Forbidden for private, loopback, link-local, metadata, multicast and reserved addresses, in whatever form
    an IPv6 address carries them."""
    found = _inner(ipaddress.ip_address(address.partition("%")[0]))
    if not found.is_global or found.is_multicast or found in _METADATA:
        raise Forbidden(
            f"{host} is {address}, which is no public address",
            setting="media.allow_hosts",
            hint=f'if media may be fetched from there: allow_hosts = ["{host}"]',
        )


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for: mapped, 6to4, Teredo or NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None) or address


def literal(host: str) -> str | None:
    """The address that a host's name is itself, if it is one."""
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return None


class PinnedResolver(AbstractResolver):
    """Resolves a name once and has what is found checked: the connection goes to exactly those addresses, so that a
    second answer of the name's server changes nothing."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises Forbidden where any address of the name is, OSError where it is not known."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family, proto=socket.IPPROTO_TCP)
        if host not in self._allowed:
            for *_, place in found:
                check(str(place[0]), host)
        return [_result(host, entry) for entry in found]

    async def close(self) -> None:
        """Nothing stays open."""


def _result(host: str, entry: tuple[Any, ...]) -> ResolveResult:
    family, _, proto, _, place = entry
    return ResolveResult(
        hostname=host, host=place[0], port=place[1], family=family, proto=proto, flags=socket.AI_NUMERICHOST
    )
