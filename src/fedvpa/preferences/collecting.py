"""From judgements of named people on texts to tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from fedvpa.preferences.people import PeopleTable
from fedvpa.preferences.schema import CHOICE, RATING, VOTE, Item, Judgements


class Judgement(NamedTuple):
    """One judgement: of `first` against `second` (a choice), or of `first` alone (a vote, a rating)."""

    user: str
    first: Item
    second: Item | None
    value: float
    weight: float | None = None


def people_of(
    judgements: Iterable[Judgement],
    counts: Counter[str],
    groups: Mapping[str, str | None] | None = None,
    votes: bool = False,
    notes: tuple[str, ...] = (),
    columns: str = "",
) -> PeopleTable:
    """The table of people, items and judgements, each in the order of first appearance.

    Strengths of choices are divided by their mean; a choice without one has 1.

    Args:
        votes: whether judgements of one item are votes; else they are ratings.
    """
    rows = list(judgements)
    items: dict[Item, int] = {}
    users: dict[str, int] = {}
    user = [users.setdefault(j.user, len(users)) for j in rows]
    first, second = [], []
    for j in rows:
        first.append(items.setdefault(j.first, len(items)))
        second.append(-1 if j.second is None else items.setdefault(j.second, len(items)))
    given = [j.weight for j in rows if j.weight is not None]
    mean = sum(given) / len(given) if given else 1.0
    alone = VOTE if votes else RATING
    return PeopleTable(
        items=tuple(items),
        users=tuple(users),
        user=torch.tensor(user, dtype=torch.int64),
        judgements=Judgements(
            first=torch.tensor(first, dtype=torch.int64),
            second=torch.tensor(second, dtype=torch.int64),
            value=torch.tensor([j.value for j in rows], dtype=torch.float32),
            kind=torch.tensor([alone if j.second is None else CHOICE for j in rows], dtype=torch.int8),
            weight=torch.tensor([1.0 if j.weight is None else j.weight / mean for j in rows], dtype=torch.float32),
        ),
        groups={u: g for u, g in (groups or {}).items() if g is not None and u in users},
        counts={k: n for k, n in counts.items() if n},
        notes=notes,
        columns=columns,
    )
