"""`fedvpa serve`: the process that listens, until it is asked to stop."""

from __future__ import annotations

import contextlib
import gc
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import uvicorn
from rich.console import Console

from fedvpa.apps.listening import tcp_socket
from fedvpa.apps.server.app import Service, create_app
from fedvpa.apps.server.protocol import guarded
from fedvpa.apps.server.settings import Settings
from fedvpa.errors import UserError
from fedvpa.selector import Selector


class Server(uvicorn.Server):
    """uvicorn's server, which stops when the language model cannot be loaded.

    When it is loaded, what lives as long as the process is taken out of the garbage collector's sight: looking through
    it would stop all requests for a tenth of a second and more, again and again.
    """

    service: Service
    settled = False

    async def on_tick(self, counter: int) -> bool:
        if self.service.batcher.failure is not None:
            self.should_exit = True
        if not self.settled and self.service.batcher.ready.is_set():
            gc.collect()
            gc.freeze()
            self.settled = True
        return await super().on_tick(counter)


def serve(run: Path, settings: Settings, console: Console) -> None:
    """Serves a run's selector until SIGINT or SIGTERM; requests under way are then finished (for ``drain`` seconds).

    Raises:
        UserError: no selector there, its language model is not there or another one, the address is taken.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP gives each thread helpers of its own; only the model's thread shall have some
    selector = Selector.from_pretrained(run)
    service = Service(selector, settings, threads)
    with contextlib.closing(listen(settings)) as listener:
        host, port = listener.getsockname()[:2]
        place = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        console.print(
            f"{run}: {place} ({place}/docs says what can be asked); stop with Ctrl-C", highlight=False, soft_wrap=True
        )
        server = server_of(service)
        with _handled():
            server.run(sockets=[listener])
    failure = service.batcher.failure
    if failure is not None:
        raise failure
    console.print("stopped", highlight=False)


def server_of(service: Service) -> Server:
    """The HTTP server of a service; its ``run`` takes the listening sockets."""
    config = uvicorn.Config(
        create_app(service),
        http=guarded(service.settings),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(service.settings.drain)),
    )
    server = Server(config)
    server.service = service
    return server


def listen(settings: Settings) -> socket.socket:
    """A listening socket."""
    try:
        found = tcp_socket(settings.host, settings.port)
        found.listen(1024)
        return found
    except OSError as e:
        remedy = "choose another --port, or --host"
        raise UserError(f"cannot listen at {settings.host}:{settings.port} ({e.strerror or e})", remedy) from None


@contextlib.contextmanager
def _handled() -> Iterator[None]:
    """uvicorn sends a signal on to the process after it has stopped for it; here that is no news any more."""

    def nothing(*_: Any) -> None:
        return None

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, nothing) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
