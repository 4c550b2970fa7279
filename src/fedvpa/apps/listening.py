"""Where a service of this package listens, and who may reach it: this machine without a token, others with one."""

from __future__ import annotations

import ipaddress
import socket

from fedvpa.errors import UserError

SHORTEST_TOKEN = 8


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address (a name or an IP address, without a port)."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(host: str, token: str | None) -> None:
    """Holds a service to that.

    Raises:
        UserError: the token is short or no plain text, or it is missing where others can reach the service.
    """
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        remedy = 'make one with `python -c "import secrets; print(secrets.token_urlsafe())"`'
        raise UserError(f"must be {SHORTEST_TOKEN} printable ASCII characters or more", remedy, field="--token")
    if token is None and not is_local(host):
        remedy = "give --token (or FEDVPA_TOKEN), or leave --host at 127.0.0.1"
        raise UserError(f"{host} can be reached by others, and there is no token", remedy, field="--host")


def tcp_socket(host: str, port: int) -> socket.socket:
    """A socket bound to an address, which does not listen yet.

    It is made with its protocol named: asyncio turns Nagle's algorithm off (TCP_NODELAY) for such sockets only. With it
    every second small answer on a kept connection waits 40 ms for the client's delayed acknowledgement.

    Args:
        host: a name or an IP address; of a name's addresses the first of IPv4 is taken, else the first.
        port: 0 takes a free one.

    Raises:
        OSError: the port is taken, or the host is none of this machine's.
    """
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except UnicodeError:
        raise OSError("no name of a host") from None
    family, kind, proto, _, address = min(known, key=lambda found: found[0] != socket.AF_INET)
    made = socket.socket(family, kind, proto)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made
