"""What a replay of questions found: pooled over people, compared with a bootstrap over people, printed as tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedvpa.evaluation.compare import people_difference

STEPS = (0, 1, 2, 4, 8, 16, 32)
"""Numbers of votes after which people's queries are predicted."""
BOOTSTRAP = 2000
MEASURES = ("accuracy", "matched")


class Comparison(NamedTuple):
    """n votes of the arm `left` against m of the arm `right`, in one way to ask and one measure."""

    queries: str
    measure: str
    left: str
    n: int
    right: str
    m: int


COMPARISONS = (
    Comparison("known-items", "matched", "chosen", 2, "random", 8),
    Comparison("new-items", "accuracy", "chosen", 8, "random", 16),
    *(
        Comparison(queries, measure, "chosen", n, "random", n)
        for queries, measure in (("known-items", "matched"), ("new-items", "accuracy"))
        for n in (2, 8)
    ),
    *(
        Comparison(queries, measure, "chosen", n, "planned", n)
        for queries, measure in (("known-items", "matched"), ("new-items", "accuracy"))
        for n in (2, 8)
    ),
)


Person = tuple[str, str]


@dataclass
class Pooled:
    """Per way to ask, arm and measure: for each person the values after each of `STEPS`, one list per seed."""

    values: dict[tuple[str, str, str], dict[Person, list[list[float]]]]

    @classmethod
    def empty(cls) -> Pooled:
        return cls(defaultdict(lambda: defaultdict(list)))

    def add(self, queries: str, people: Sequence[Person], arms: dict[str, dict[int, dict[str, Tensor]]]) -> None:
        for arm, found in arms.items():
            for measure in (*MEASURES, "votes"):
                rows = torch.stack([found[n][measure].double() for n in STEPS], 1).tolist()
                for person, row in zip(people, rows, strict=True):
                    self.values[queries, arm, measure][person].append(row)

    def people(self, queries: str, arm: str, measure: str) -> np.ndarray:
        """(people, steps) each person's mean over the seeds, without those who have no such query."""
        rows = np.array([np.mean(v, 0) for v in map(_known, self.values[queries, arm, measure].values()) if v])
        return rows.reshape(-1, len(STEPS))

    def compare(self, c: Comparison) -> dict[str, Any]:
        left = self.people(c.queries, c.left, c.measure)[:, STEPS.index(c.n)]
        right = self.people(c.queries, c.right, c.measure)[:, STEPS.index(c.m)]
        found = people_difference(left, right, BOOTSTRAP, 0)
        return c._asdict() | {"people": len(left), "values": [float(left.mean()), float(right.mean())], **found}

    def table(self) -> list[dict[str, Any]]:
        return [
            {"queries": q, "arm": arm, "measure": measure, "people": len(rows), "values": rows.mean(0).tolist()}
            for q, arm, measure in self.values
            if len(rows := self.people(q, arm, measure))
        ]


def _known(rows: list[list[float]]) -> list[list[float]]:
    return [row for row in rows if not np.isnan(row).any()]


def show(result: dict[str, Any]) -> None:
    print("| queries | measure | arm | people |", " | ".join(map(str, STEPS)), "|")
    print("|---|---|---|---|" + "---|" * len(STEPS))
    for r in sorted(result["table"], key=lambda r: (r["queries"], r["measure"])):
        digits = 1 if r["measure"] == "votes" else 3
        values = " | ".join(f"{v:.{digits}f}" for v in r["values"])
        print(f"| {r['queries']} | {r['measure']} | {r['arm']} | {r['people']} | {values} |")
    print("\n| queries | measure | compared | people | accuracies | difference (95 %) | p |")
    print("|---|---|---|---|---|---|---|")
    for r in result["comparisons"]:
        compared = f"{r['n']} {r['left']} against {r['m']} {r['right']}"
        values = ", ".join(f"{v:.3f}" for v in r["values"])
        difference = f"{r['difference']:+.3f} ({r['ci_low']:+.3f} to {r['ci_high']:+.3f})"
        print(
            f"| {r['queries']} | {r['measure']} | {compared} | {r['people']} | {values} | {difference} | {r['p']:.4f} |"
        )
