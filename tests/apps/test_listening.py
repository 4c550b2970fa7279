"""Sockets that services listen at."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from fedvpa.apps.listening import tcp_socket
from fedvpa.apps.server.running import listen
from fedvpa.apps.server.settings import Settings
from fedvpa.apps.studio.serving import bound
from fedvpa.errors import UserError


def accepted(listener: socket.socket) -> int:
    """TCP_NODELAY of a connection that asyncio's own loop accepts (uvloop's sets it always)."""
    found: list[int] = []

    async def connection(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(connection, sock=listener)
        reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        await reader.read()
        writer.close()
        server.close()

    loop = asyncio.SelectorEventLoop()
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()
    return found[0]


@pytest.mark.parametrize("made", [lambda: listen(Settings(port=0)), lambda: bound("127.0.0.1", 0)])
def test_small_answers_are_not_held_back(made: Callable[[], socket.socket]) -> None:
    """Both parts of an answer leave at once; with Nagle's algorithm the second waits 40 ms on a kept connection."""
    assert accepted(made()) == 1


def test_a_name_is_an_ipv4_address_where_it_has_one() -> None:
    with tcp_socket("localhost", 0) as found:
        assert found.getsockname()[0] == "127.0.0.1"
    with tcp_socket("::1", 0) as found:
        assert found.getsockname()[0] == "::1"


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "256.0.0.1", "192.0.2.1"])
def test_an_address_of_nobody(host: str) -> None:
    token = "a token of ours"
    with pytest.raises(UserError, match=r"cannot listen at .*; choose another --port"):
        listen(Settings(host, 0, token))
    with pytest.raises(UserError, match="cannot be used"):
        bound(host, 0)


def test_a_taken_port() -> None:
    with listen(Settings(port=0)) as first, pytest.raises(UserError, match="Address already in use"):
        listen(Settings(port=first.getsockname()[1]))
