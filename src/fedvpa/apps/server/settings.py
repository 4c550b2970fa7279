"""What a service may be asked, how much of it, and how long that may take."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from fedvpa.errors import UserError

SHORTEST_TOKEN = 8
MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """The limits of a service; every request is held to them before the model sees it.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        token: what callers must send; None on this machine only.
        max_bytes: of a request's body. max_header_bytes: of its head.
        max_items: examples, pairs or texts in one request; max_responses: that are ranked (each with each other).
        max_chars: of all texts of a request together, a prompt counted once per item that it belongs to.
        body_seconds: for a request's head, and again for its body, to arrive.
        timeout: seconds from the whole request to its answer.
        queue: requests that wait for the model; further ones are refused (429).
        batch_requests: merged at most; 1 turns merging off. batch_chars: of texts not yet encoded, merged at most.
        batch_wait: seconds that the first request of a batch waits for others.
        memory: bytes of features that are kept.
        users: that may be stored.
        drain: seconds that requests under way may take when the service is asked to stop.
    """

    host: str = "127.0.0.1"
    port: int = 8400
    token: str | None = None
    max_bytes: int = 2 * MIB
    max_header_bytes: int = 32 * 1024
    max_items: int = 256
    max_responses: int = 64
    max_chars: int = 400_000
    body_seconds: float = 10.0
    timeout: float = 60.0
    queue: int = 256
    batch_requests: int = 64
    batch_chars: int = 48_000
    batch_wait: float = 0.004
    memory: int = 256 * MIB
    users: int = 10_000
    drain: float = 30.0

    def __post_init__(self) -> None:
        if self.token is not None and (
            len(self.token) < SHORTEST_TOKEN or not self.token.isascii() or not self.token.isprintable()
        ):
            remedy = 'make one with `python -c "import secrets; print(secrets.token_urlsafe())"`'
            raise UserError(f"must be {SHORTEST_TOKEN} printable ASCII characters or more", remedy, field="--token")
        if self.token is None and not is_local(self.host):
            remedy = "give --token (or FEDVPA_TOKEN), or leave --host at 127.0.0.1"
            raise UserError(f"{self.host} can be reached by others, and there is no token", remedy, field="--host")


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
