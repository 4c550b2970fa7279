"""SIGINT and SIGTERM: finish the round, save, and say how to go on."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupted(Exception):
    """A run was asked to stop, and everything worth keeping is on disk.

    Args:
        signum: the signal; the exit code is 128 + signum.
        remedy: how to go on.
    """

    def __init__(self, signum: int, remedy: str) -> None:
        super().__init__(signum, remedy)
        self.signum, self.remedy = signum, remedy

    def __str__(self) -> str:
        return f"interrupted; {self.remedy}"


class StopSignals:
    """While active, the first signal is noted in ``received``; a second one, or one after `final`, interrupts at once.

    Outside the main thread (Flower's simulation) signals are the main thread's business, and nothing is done.

    Args:
        remedy: what `Interrupted` tells the user.
    """

    def __init__(self, remedy: str) -> None:
        self.remedy, self.received = remedy, 0
        self._final = False

    def __enter__(self) -> StopSignals:
        mine = threading.current_thread() is threading.main_thread()
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM) if mine}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def final(self) -> None:
        """From here on nothing needs to be saved: stop at once.

        Raises:
            Interrupted: a signal has already come.
        """
        self._final = True
        self.check()

    def check(self) -> None:
        """Raises `Interrupted` if a signal has come."""
        if self.received:
            raise Interrupted(self.received, self.remedy)

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.received or self._final:
            raise Interrupted(signum, self.remedy)
        self.received = signum
