"""How generation shows that it is alive: a live bar with tokens per second, or lines where there is no terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINES = 10


class TokenProgress:
    """Counts finished responses out of ``total``, and tokens, on a console."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self.console, self.label, self.total = console, label, total
        self.finished = self.tokens = self.fresh = self._shown = 0
        self.began = time.perf_counter()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(label, total=total, state="")

    def __enter__(self) -> TokenProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def state(self) -> str:
        spent = time.perf_counter() - self.began
        return f"{self.tokens / spent:,.0f} tokens/s" if spent else ""

    def count(self, tokens: int) -> None:
        """Some tokens more were generated."""
        self.tokens += tokens
        self._bar.update(self._task, state=self.state)

    def finish(self, responses: int, fresh: bool) -> None:
        """Some responses are there, ``fresh`` from the model or else from the cache."""
        self.finished += responses
        self.fresh += responses * fresh
        self._bar.update(self._task, completed=self.finished)
        tenth = self.finished * LINES // self.total
        if fresh and not self.console.is_terminal and (tenth > self._shown or self.finished == self.total):
            self._shown = tenth
            left = (time.perf_counter() - self.began) / self.fresh * (self.total - self.finished)
            line = f"{self.label}: {self.finished}/{self.total} responses  {self.state}  {left:.0f} s left"
            self.console.print(line, highlight=False, soft_wrap=True)
