"""How long a study will take: from finished cells like the ones to do, else from a guess."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedvpa.apps.executor import duration
from fedvpa.apps.study_grid import StudyCell
from fedvpa.config import EVERYBODY

GUESSES: Mapping[str, tuple[float, float]] = {
    "fedbt": (1.0, 0.015),
    "fedbiscuit": (2.0, 0.05),
    "fedpdpo": (10.0, 0.02),
    "pluralllm": (20.0, 0.02),
    "votes-mean": (1.0, 0.02),
    "local": (15.0, 0.0),
    "feddpo": (1500.0, 900.0),
    "oracle": (9.0, 0.0),
    "oracle-clients": (6.0, 0.0),
}
"""Per method seconds on one core for 100 + 100 users: measuring, and each round of 10 clients with 2 local steps."""
UNKNOWN = 500
"""Users, where a configuration takes whoever is there."""
LATENT_GUESS = (9.0, 0.04)
"""The same for methods with a latent."""


def guess(method: str, config: Mapping[str, Any]) -> float:
    """Seconds of a cell on one core, without any experience of it."""
    fixed, each = GUESSES.get(method, LATENT_GUESS)
    f = config["federation"]
    # Where everybody takes part, how many that is is known only after reading.
    users = sum(UNKNOWN if f[key] >= EVERYBODY else f[key] for key in ("clients", "unseen_clients")) / 200
    return 1 + fixed * users + each * f["rounds"] * f["sampled_clients"] / 10 * f["local_steps"] / 2


class Estimator:
    """Seconds per cell: the mean of finished cells alike, else the guess times how far guesses were off.

    Args:
        finished: (resolved configuration, seconds) of cells.
    """

    def __init__(self, finished: Iterable[tuple[Mapping[str, Any], float]]) -> None:
        self._alike: dict[tuple[Any, ...], list[float]] = {}
        self._off: dict[str | None, list[float]] = {}
        for config, seconds in finished:
            method = config["method"]["name"]
            self._alike.setdefault(_size(method, config), []).append(seconds)
            for key in (method, None):
                self._off.setdefault(key, []).append(seconds / guess(method, config))

    def seconds(self, cell: StudyCell) -> float:
        method = cell.cell.method
        config = cell.cell.config(cell.config).model_dump(mode="json")
        alike = self._alike.get(_size(method, config))
        if alike:
            return statistics.fmean(alike)
        off = self._off.get(method) or self._off.get(None)
        return guess(method, config) * (statistics.median(off) if off else 1.0)


def _size(method: str, config: Mapping[str, Any]) -> tuple[Any, ...]:
    f = config["federation"]
    sizes = ("clients", "unseen_clients", "validation_clients", "sampled_clients", "rounds", "local_steps")
    return (method, config["data"]["name"], config["evaluation"]["protocol"], *(f[k] for k in sizes))


def describe(name: str, cells: Sequence[StudyCell], todo: Mapping[str, float], jobs: int) -> str:
    """The estimate in a sentence.

    Args:
        todo: address -> seconds of the cells that are not finished.
    """
    methods = len({c.cell.method for c in cells})
    settings = len({tuple(c.settings.items()) for c in cells})
    seeds = len({c.cell.seed for c in cells})
    count = len({c.address for c in cells})
    head = f"{name}: {count} cells ({methods} methods, {settings} settings, {seeds} seeds)"
    done = f", {count - len(todo)} finished before" if len(todo) < count else ""
    if not todo:
        return f"{head}{done}, nothing to run"
    total, each = sum(todo.values()), statistics.fmean(todo.values())
    work = f"{len(todo)} to run, about {each:.0f} s each, {jobs} at a time"
    return f"{head}{done}; {work}: about {duration(total / min(jobs, len(todo)))}"


def print_plan(cells: Sequence[StudyCell], todo: Mapping[str, float], console: Console) -> None:
    """A line per setting and method: seeds, how many are finished, and what the others will take."""
    table = Table("setting", "method", "seeds", "finished", "to run", title="Cells", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    groups: dict[tuple[str, str], list[StudyCell]] = {}
    for cell in cells:
        setting = str(cell).removesuffix(f", {cell.cell}")
        groups.setdefault((setting, cell.cell.method), []).append(cell)
    for (setting, method), own in groups.items():
        left = [todo[c.address] for c in own if c.address in todo]
        seeds = str(len(own))
        shown = duration(sum(left)) if left else ""
        table.add_row(Text(setting), Text(method), seeds, str(len(own) - len(left)), shown)
    console.print(table)
