"""Dynamic batching: one thread owns the model, and what arrives while it works is merged into its next batch."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedvpa.apps.server.errors import ApiError
from fedvpa.apps.server.settings import Settings

LONGEST_RETRY = 30


class Evaluate(Protocol):
    """What is done with a batch: one result per work, or an exception that then concerns one of them."""

    def __call__(self, works: Sequence[Any], wanted: Callable[[], bool]) -> list[Any]: ...


@dataclass(eq=False)
class Ticket:
    """One request on its way; ``outcome`` is a result or an exception."""

    work: Any
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    arrived: float
    abandoned: bool = False
    outcome: Any = field(default=None)


class Batcher:
    """A bounded queue and the thread that empties it.

    Args:
        evaluate: computes a batch; cost: how much of ``batch_chars`` a work takes.
        settings: bounds of the queue and of a batch, and the time that a request may take.
        warm: called once in the thread, before the first batch.
        watch: told of every batch: requests, and seconds that it took.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        cost: Callable[[Any], int],
        settings: Settings,
        warm: Callable[[], None] = lambda: None,
        watch: Callable[[int, float], None] = lambda *_: None,
    ) -> None:
        self._evaluate, self._cost, self._warm, self._watch = evaluate, cost, warm, watch
        self.settings = settings
        self._queue: deque[Ticket] = deque()
        self._coming: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
        self._ended = False
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._pace = 0.0  # seconds per request, lately
        self.ready = threading.Event()
        self.failure: Exception | None = None

    @property
    def waiting(self) -> int:
        """Requests in the queue, or on their way into it."""
        return len(self._queue) + sum(map(len, self._coming.values()))

    def start(self) -> None:
        """Starts the thread; again after `close`."""
        with self._changed:
            if self._thread is None:
                self._closing = self._ended = False
                self._thread = threading.Thread(target=self._work, name="fedvpa-model", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Finishes what is in the queue, and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()
            self._thread = None

    async def submit(self, work: Any) -> Any:
        """The result of one work, merged with others'.

        Raises:
            ApiError: the queue is full (429), it took too long (504), or the service is stopping (503).
            Exception: whatever the evaluation raised for this work.
        """
        loop = asyncio.get_running_loop()
        ticket = Ticket(work, loop, loop.create_future(), time.monotonic())
        with self._changed:
            if self._closing or self.failure is not None:
                raise _stopping()
            if self.waiting >= self.settings.queue:
                seconds = min(LONGEST_RETRY, max(1, math.ceil(self._pace * self.waiting)))
                message = f"{self.waiting} requests are waiting"
                raise ApiError(429, message, "try again later", headers={"Retry-After": str(seconds)})
            coming = self._coming.setdefault(loop, [])
            coming.append(ticket)
        if len(coming) == 1:
            loop.call_soon(self._enqueue, loop)
        self.start()
        try:
            async with asyncio.timeout(self.settings.timeout):
                return await ticket.future
        except TimeoutError:
            message = f"no answer within {self.settings.timeout:g} seconds"
            raise ApiError(504, message, "send less at a time, or serve with a longer --timeout") from None
        finally:
            ticket.abandoned = not ticket.future.done() or ticket.future.cancelled()

    def _enqueue(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hands over what one turn of the event loop has brought, all of it at once.

        The thread is woken once and not for each: it would compete with the loop, which still reads the others.
        """
        with self._changed:
            tickets = self._coming.pop(loop)
            if not self._ended:
                self._queue.extend(tickets)
                self._changed.notify()
                return
        for ticket in tickets:
            ticket.outcome = _stopping()
        _resolve(tickets)

    # In the thread -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if not self.ready.is_set():
            try:
                self._warm()
            except Exception as e:  # whoever waits must hear of it, whatever it is
                self._fail(e)
                return
            self.ready.set()
        while (tickets := self._take()) is not None:
            began = time.monotonic()
            self._run(tickets)
            seconds = time.monotonic() - began
            if tickets:
                self._pace += 0.2 * (seconds / len(tickets) - self._pace)
                self._watch(len(tickets), seconds)

    def _take(self) -> list[Ticket] | None:
        """The next batch, oldest first; None when the queue is empty and closed."""
        s = self.settings
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            if not self._queue:
                self._ended = True
                return None
            until = self._queue[0].arrived + s.batch_wait
            while len(self._queue) < s.batch_requests and not self._closing:
                if (left := until - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            candidates = [self._queue[i] for i in range(min(len(self._queue), s.batch_requests))]
        taken: list[Ticket] = []
        chars = 0
        for ticket in candidates:
            if not ticket.abandoned:
                chars += self._cost(ticket.work)
                if chars > s.batch_chars and any(not t.abandoned for t in taken):
                    break
            taken.append(ticket)
        with self._changed:
            for _ in taken:
                self._queue.popleft()
        return [t for t in taken if not t.abandoned]

    def _run(self, tickets: list[Ticket]) -> None:
        if not tickets:
            return
        try:
            outcomes = self._evaluate([t.work for t in tickets], wanted=lambda: any(not t.abandoned for t in tickets))
        except Exception as e:  # a bug must not end the thread, nor may one request's mistake reach the others
            if len(tickets) > 1:
                for ticket in tickets:
                    self._run([ticket])
                return
            outcomes = [e]
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            ticket.outcome = outcome
        _deliver(tickets)

    def _fail(self, e: Exception) -> None:
        self.failure = e
        with self._changed:
            tickets, self._thread, self._ended = list(self._queue), None, True
            self._queue.clear()
        for ticket in tickets:
            ticket.outcome = _stopping()
        _deliver(tickets)


def _stopping() -> ApiError:
    return ApiError(503, "the service is stopping", "try again later", headers={"Retry-After": "5"})


def _deliver(tickets: Sequence[Ticket]) -> None:
    """Wakes the waiting requests, all of one event loop at once."""
    loops: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
    for ticket in tickets:
        loops.setdefault(ticket.loop, []).append(ticket)
    for loop, mine in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there
            loop.call_soon_threadsafe(_resolve, mine)


def _resolve(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        if ticket.future.done():
            continue
        if isinstance(ticket.outcome, Exception):
            ticket.future.set_exception(ticket.outcome)
        else:
            ticket.future.set_result(ticket.outcome)
