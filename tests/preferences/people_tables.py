"""Tables of made-up people for the tests of `fedvpa.preferences.people`."""

from __future__ import annotations

import torch

from fedvpa.preferences.people import PeopleTable
from fedvpa.preferences.schema import CHOICE, RATING, VOTE, Item, Judgements, as_prompt

Row = tuple[str, int, int, float, int]
"""user, item, other item or -1, value, kind"""


def table(rows: list[Row], items: int, prompts: int = 1, weights: list[float] | None = None, **rest) -> PeopleTable:
    """People's judgements of the items "text i", of which item i belongs to prompt i % prompts."""
    users = tuple(dict.fromkeys(row[0] for row in rows))
    place = {user: u for u, user in enumerate(users)}
    first, second = (torch.tensor([row[k] for row in rows], dtype=torch.int64) for k in (1, 2))
    return PeopleTable(
        items=tuple(Item(as_prompt(f"question {i % prompts}"), f"text {i}") for i in range(items)),
        users=users,
        user=torch.tensor([place[row[0]] for row in rows], dtype=torch.int64),
        judgements=Judgements(
            first,
            second,
            torch.tensor([row[3] for row in rows], dtype=torch.float32),
            torch.tensor([row[4] for row in rows], dtype=torch.int8),
            torch.tensor(weights) if weights else torch.ones(len(rows)),
        ),
        **rest,
    )


def voters(people: int = 40, items: int = 60, share: float = 0.8) -> list[Row]:
    """Each votes on most items, on about half of them yes."""
    rng = torch.Generator().manual_seed(1)
    voted = torch.rand(people, items, generator=rng) < share
    yes = torch.rand(people, items, generator=rng) < 0.5
    return [(f"u{u}", i, -1, 1.0 if yes[u, i] else -1.0, VOTE) for u, i in voted.nonzero().tolist()]


def raters(people: int = 40, items: int = 60, share: float = 0.8) -> list[Row]:
    """Each rates most items from -10 to 10."""
    rng = torch.Generator().manual_seed(2)
    rating = (torch.rand(people, items, generator=rng) * 20 - 10).mul(100).round() / 100
    rated = (torch.rand(people, items, generator=rng) < share).nonzero().tolist()
    return [(f"u{u}", i, -1, float(rating[u, i]), RATING) for u, i in rated]


def choosers(people: int = 40, items: int = 60, number: int = 60, prompts: int = 1) -> list[Row]:
    """Each makes choices between random items of one prompt, without repetition."""
    rng = torch.Generator().manual_seed(3)
    couples = torch.combinations(torch.arange(items))
    couples = couples[couples[:, 0] % prompts == couples[:, 1] % prompts]
    rows: list[Row] = []
    for u in range(people):
        for i, k in couples[torch.randperm(len(couples), generator=rng)[:number]].tolist():
            rows.append((f"u{u}", i, k, float(torch.randint(2, (), generator=rng) * 2 - 1), CHOICE))
    return rows
