"""HTTP sessions for downloads from strangers: no compression, no cookies, no connections to private addresses."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import aiohttp

from vgan.errors import VideoError

AddressInfo = tuple[Any, Any, int, str, tuple[Any, ...]]  # as `socket.getaddrinfo` returns it


async def public_client(**options: Any) -> aiohttp.ClientSession:
    """Open a session that connects to public addresses only, for fsspec's option `get_client`."""
    return _session(_public_socket, options)


async def private_client(**options: Any) -> aiohttp.ClientSession:
    """Open a session that also connects to private addresses, except link-local ones."""
    return _session(_private_socket, options)


def _session(socket_factory: Any, options: dict[str, Any]) -> aiohttp.ClientSession:
    """Open a session whose every connection, also after a redirect, is made by `socket_factory`."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(socket_factory=socket_factory),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},  # videos gain nothing from compression
        timeout=aiohttp.ClientTimeout(total=None),  # download.py has its own limits
        **options,
    )


def _public_socket(info: AddressInfo) -> socket.socket:
    """Create a socket for an address.

    Raises:
        VideoError: The address is private, loopback, link-local or otherwise not public. Not an OSError, which aiohttp
            would convert to a connection error.
    """
    if not _address(info).is_global:
        raise VideoError("fetch", "private_address", "permitted by fetch.private_addresses=true")
    return _private_socket(info)


def _private_socket(info: AddressInfo) -> socket.socket:
    """Create a socket for an address that is not link-local, where clouds answer with credentials of the machine.

    Raises:
        VideoError: The address is link-local.
    """
    if _address(info).is_link_local:
        raise VideoError("fetch", "private_address", "link-local")
    return socket.socket(family=info[0], type=info[1], proto=info[2])


def _address(info: AddressInfo) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IP address to connect to; the IPv4 address of one mapped into IPv6."""
    address = ipaddress.ip_address(str(info[4][0]).partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address
