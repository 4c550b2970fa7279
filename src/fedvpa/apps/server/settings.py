"""What a service may be asked, how much of it, and how long that may take."""

from __future__ import annotations

from dataclasses import dataclass

from fedvpa.apps.listening import check_token

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
        max_rollout: queries in one request of an OpenRLHF trainer, which posts a whole rollout.
        max_rollout_bytes: of its body. The queries are scored ``max_items`` at a time, so that other requests come in
            between. Those larger than ``max_bytes`` have at most twice as many bytes together; others wait (503).
        body_seconds: for a request's head, and again for its body, to arrive.
        timeout: seconds from the whole request to its answer.
        queue: requests that wait for the model; further ones are refused (429).
        batch_requests: merged at most; 1 turns merging off. batch_chars: of texts not yet encoded, merged at most;
            enough to fill the language model's batches, little enough that who misses one does not wait long.
        batch_wait: seconds that the first request of a batch waits for others.
        memory: bytes of features that are kept.
        users: that may be stored.
        tokenizer: of the policies that are trained, a folder or Hub id; what its template adds is taken off.
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
    max_rollout: int = 16_384
    max_rollout_bytes: int = 128 * MIB
    body_seconds: float = 10.0
    timeout: float = 60.0
    queue: int = 256
    batch_requests: int = 64
    batch_chars: int = 40_000
    batch_wait: float = 0.004
    memory: int = 256 * MIB
    users: int = 10_000
    tokenizer: str | None = None
    drain: float = 30.0

    def __post_init__(self) -> None:
        check_token(self.host, self.token)
