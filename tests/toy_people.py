"""The small world of `toy` with judgements as people give them: choices, votes and ratings of single items."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedvpa.backbone import Features
from fedvpa.backbone.encode import EncodeReport
from fedvpa.config import ExperimentConfig
from fedvpa.evaluation.experiment import Prepared, prepare
from fedvpa.preferences.schema import (
    CHOICE,
    RATING,
    VOTE,
    Client,
    FederatedPreferences,
    Item,
    Judgements,
    LabelledPairs,
    Message,
    Pair,
    RatingSums,
    Split,
)
from fedvpa.preferences.seeding import generator
from toy import DIM, settings

ITEMS: dict[Split, int] = {"train": 60, "validation": 16, "test": 24}
QUERIES = 20
KINDS = {"choice": CHOICE, "vote": VOTE, "rating": RATING}


def laplace_settings(**overrides: Any) -> ExperimentConfig:
    """A tiny configuration of `fedvpa-laplace`, whose prior becomes a mixture after half of the rounds."""
    given: dict[str, Any] = {
        "method__name": "fedvpa-laplace",
        "laplace__rounds": 8,
        "laplace__components": 3,
        "laplace__components_start": 0.5,
        "laplace__prior_start": 0.25,
    }
    return settings(**given | overrides).for_method("fedvpa-laplace")


def people(
    config: ExperimentConfig, kinds: tuple[str, ...] = ("vote",), groups: int = 2, ragged: bool = False
) -> tuple[FederatedPreferences, Features]:
    """People of `groups` groups as in `toy`, each with a threshold of its own; their judgements are of all `kinds`.

    Each judged `data.pairs_per_client` times two items of the training split, `ragged` people fewer, and is asked
    about pairs of other items.
    """
    g = generator(config.seed, "toy people")
    x = torch.randn(sum(ITEMS.values()), DIM, generator=g)
    items = tuple(Item((Message("user", "Which?"),), f"item {i}") for i in range(len(x)))
    held: dict[Split, Tensor] = dict(zip(ITEMS, torch.arange(len(x)).split(list(ITEMS.values())), strict=True))
    rules = torch.zeros(groups, DIM)
    for k in range(groups):
        rules[k, k // 2] = 2.0 - 4.0 * (k % 2)
    place: dict[tuple[int, int], int] = {}

    def pairs_of(ends: Tensor, score: Tensor) -> LabelledPairs:
        low, high = ends.amin(1), ends.amax(1)
        index = [place.setdefault((a, b), len(place)) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
        return LabelledPairs.of(index, torch.where(score[low] > score[high], 1, -1).tolist())

    def client(population: str, i: int) -> Client:
        group = i % groups
        score = x @ rules[group]
        n = 2 * config.data.pairs_per_client - (6 * (i % 3) if ragged else 0)
        mine = held["train"][torch.randperm(ITEMS["train"], generator=g)[:n]]
        kind = torch.tensor([KINDS[kinds[j % len(kinds)]] for j in range(n)], dtype=torch.int8)
        other = mine[torch.arange(n) - 1]
        own = score[mine] + 0.5 * torch.randn(1, generator=g)
        value = torch.where(
            kind == RATING, own / 2, torch.where(kind == VOTE, own.sign(), (score[mine] - score[other]).sign())
        )
        judged = Judgements(mine, torch.where(kind == CHOICE, other, -1), value, kind, torch.ones(n))
        train = pairs_of(torch.stack([mine[0::2], mine[1::2]], 1), score)
        asked = held["validation" if population == "validation" else "test"]
        ends = asked[torch.rand(QUERIES, len(asked), generator=g).argsort(1)[:, :2]]
        test = pairs_of(ends[(ends.amin(1) * 1000 + ends.amax(1)).argsort()].unique(dim=0), score)
        return Client(f"{population}-{i}", group, train, test, judged, RatingSums.of(judged))

    f = config.federation
    sizes = {"seen": f.clients, "validation": f.validation_clients, "unseen": f.unseen_clients}
    clients = {p: tuple(client(p, i) for i in range(n)) for p, n in sizes.items()}
    rows = torch.tensor(list(place))
    of_item: list[Split] = [split for split, n in ITEMS.items() for _ in range(n)]
    difference = rules @ (x[rows[:, 0]] - x[rows[:, 1]]).T
    data = FederatedPreferences(
        pairs=tuple(Pair(items[a].prompt, items[a].text, items[b].text) for a, b in place),
        split=tuple(of_item[a] for a, _ in place),
        groups=tuple(f"rule {k}" for k in range(groups)),
        opposite=tuple(k ^ 1 if k ^ 1 < groups else (k + 1) % groups for k in range(groups)),
        group_labels=torch.where(difference > 0, 1, -1).to(torch.int8),
        clients=clients,
        items=items,
    )
    return data, Features(x, rows, None, EncodeReport(len(rows), len(rows), 0, 0, 0, 0, 0.0, None))


def people_world(config: ExperimentConfig, **options: Any) -> Prepared:
    """The people, prepared like any other data."""
    return prepare(config, *people(config, **options))
