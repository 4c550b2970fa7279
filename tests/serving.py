"""A service that listens, in a thread of the test's own process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from fedvpa import Selector
from fedvpa.apps.server.app import Service
from fedvpa.apps.server.running import listen, server_of
from fedvpa.apps.server.settings import Settings


class Live(NamedTuple):
    """A service, where it listens, and a client that knows the address."""

    service: Service
    url: str
    http: httpx.Client


@contextlib.contextmanager
def listening(run: Path, **limits: Any) -> Iterator[Live]:
    """Serves a run on a free port with the given `Settings`."""
    settings = Settings(**{"port": 0, **limits})
    service = Service(Selector.from_pretrained(run), settings)
    server, listener = server_of(service), listen(settings)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert service.batcher.ready.wait(60)
    headers = {} if settings.token is None else {"authorization": f"Bearer {settings.token}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
            yield Live(service, url, http)
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
    assert not thread.is_alive()
