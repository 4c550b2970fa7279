"""uvicorn's protocol with bounds on a request's head, which uvicorn leaves open: on its size, and on its time."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedvpa.apps.server.errors import ApiError
from fedvpa.apps.server.settings import Settings

_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def guarded(settings: Settings) -> type[HttpToolsProtocol]:
    """The protocol class for a service's settings."""

    class GuardedProtocol(HttpToolsProtocol):
        """Closes a connection whose next request's head is too long in coming, or too long."""

        _timer: asyncio.TimerHandle | None = None
        _head = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]
            self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            self._arrived()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._timer is None and (self.cycle is None or self.cycle.response_complete):
                self._expect()
            if self._timer is not None:
                self._head += len(data)
            super().data_received(data)
            if self._timer is not None and self._head > settings.max_header_bytes:
                size = f"the request's head is larger than {settings.max_header_bytes:,} bytes"
                self._refuse(ApiError(431, size, "send shorter headers"))

        def on_headers_complete(self) -> None:
            self._arrived()
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            self._refuse(ApiError(400, "this is not an HTTP request", "speak HTTP/1.1"))

        def _expect(self) -> None:
            self._head = 0
            self._timer = self.loop.call_later(settings.body_seconds, self._late)

        def _arrived(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _late(self) -> None:
            self._timer = None
            if self._head:
                seconds = f"the request's head did not arrive within {settings.body_seconds:g} seconds"
                self._refuse(ApiError(408, seconds, "send it faster"))
            else:
                self.transport.close()  # nothing was asked

        def _refuse(self, e: ApiError) -> None:
            self._arrived()
            if self.transport.is_closing():
                return
            head = (
                f"HTTP/1.1 {e.status} {_REASONS[e.status]}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(e.body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + e.body)
            self.transport.close()

    return GuardedProtocol
