"""What stands before the endpoints: the token, the size of a body and the time that it takes, the count of answers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedvpa.apps.server.errors import ApiError
from fedvpa.apps.server.metrics import Metrics
from fedvpa.apps.server.settings import Settings

log = logging.getLogger("fedvpa.serve")

OPEN = ("/healthz", "/readyz")
"""Paths without a token: whoever restarts the service asks there. They tell nothing but whether it is up."""

ROLLOUT = ("/get_reward", "/get_reward/")
"""Where a trainer posts a whole rollout."""

METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS")


class Guard:
    """ASGI middleware; an endpoint behind it gets a whole body of bounded size."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._large = 0  # bytes of the bodies here that are larger than others may be
        self._token = None if settings.token is None else _digest(settings.token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        held = 0
        try:
            self._authenticate(scope)
            body = await self._body(scope, receive)
            held = self._hold(body)
            if body is not None:
                await self.app(scope, _replay(body, receive), counted)
        except ApiError as e:
            await _answer(e, counted)
        except Exception:  # whatever it is, the caller gets an answer and the log the whole of it
            log.exception("a fault")
            if not status:
                await _answer(ApiError(500, "the service has a fault; its log says where", "report it"), counted)
        finally:
            self._large -= held
            path = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.answered(path, method, status or 499, time.perf_counter() - began)  # 499: the caller has gone

    def _authenticate(self, scope: Scope) -> None:
        """A bearer token, or any name with the token as its password (OpenRLHF sends what stands in a URL).

        Raises:
            ApiError: it is missing or another one (401).
        """
        if self._token is None or scope["path"] in OPEN:
            return
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) == 1 and hmac.compare_digest(_digest(_credential(given[0])), self._token):
            return
        remedy = "send the header `authorization: Bearer TOKEN`"
        raise ApiError(
            401, "the token is missing or wrong", remedy, headers={"WWW-Authenticate": 'Basic realm="fedvpa"'}
        )

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the caller has gone.

        Raises:
            ApiError: it is too large (413) or too slow (408).
        """
        s, parts, size = self.settings, [], 0
        most = s.max_rollout_bytes if scope["path"] in ROLLOUT else s.max_bytes
        seconds = s.body_seconds * (1 + most / s.max_bytes / 4 if scope["path"] in ROLLOUT else 1)
        announced = _first(scope["headers"], b"content-length")
        if announced.isdigit() and (len(announced) > 18 or int(announced) > most):
            raise _too_large(most)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            late = f"the body did not arrive within {seconds:g} seconds"
            raise ApiError(408, late, "send it faster", headers={"Connection": "close"}) from None

    def _hold(self, body: bytes | None) -> int:
        """Counts a large body among those that are here; 0 for any other.

        Raises:
            ApiError: there are too many (503).
        """
        size = 0 if body is None or len(body) <= self.settings.max_bytes else len(body)
        if size and self._large + size > 2 * self.settings.max_rollout_bytes:
            remedy = "send it again later, or less at a time"
            raise ApiError(503, "other rollouts fill the memory", remedy, headers={"Retry-After": "2"})
        self._large += size
        return size


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hands over the body once, then whatever comes behind it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _credential(header: bytes) -> bytes:
    """What stands behind ``Bearer``, or the password behind ``Basic``."""
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


def _digest(token: bytes) -> bytes:
    """Of one length for every token, so that comparing takes the same time."""
    return hashlib.sha256(token).digest()


def _first(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((v for k, v in headers if k == name), b"")


def _too_large(most: int) -> ApiError:
    return ApiError(
        413, f"the body is larger than {most:,} bytes", "send less at a time", headers={"Connection": "close"}
    )


async def _answer(e: ApiError, send: Send) -> None:
    body = e.body
    headers = {"content-type": "application/json", "content-length": str(len(body)), **e.headers}
    raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": e.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
