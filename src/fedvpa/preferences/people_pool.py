"""Puts the pairs that were drawn for each person into one pool and makes the clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedvpa.preferences.attributes import opposites
from fedvpa.preferences.draws import unordered
from fedvpa.preferences.schema import (
    POPULATIONS,
    Client,
    FederatedPreferences,
    Item,
    Judgements,
    LabelledPairs,
    Pair,
    RatingSums,
    Split,
)
from fedvpa.preferences.users import pseudonym


@dataclass(frozen=True)
class Drawn:
    """A client whose pairs have no rows in the pool yet.

    Attributes:
        train, test: (n, 2) items, the preferred one first.
        true: (n,) int64, the label that each training pair would have without noise: 1 as it is, -1 exchanged, 0 none.
        judgements, ratings: as in `Client`.
    """

    user: str
    population: str
    train: Tensor
    true: Tensor
    test: Tensor
    judgements: Judgements | None
    ratings: RatingSums


def assemble(
    drawn: Sequence[Drawn],
    items: tuple[Item, ...],
    user_groups: Mapping[str, str],
    popular: tuple[Tensor, Tensor],
    matched: float,
) -> FederatedPreferences:
    """The pool of all drawn pairs and its clients, each population in the order of their pseudonyms.

    Args:
        items: sorted by `Item.digest`, so that of two items of a prompt the first is the pair's ``a``.
        user_groups: user to group, where known.
        popular: of each item the popularity and the number of judgements that it rests on (`popularity.popularity`).
        matched: the difference of popularity below which a pair is matched. A pair is never matched where no training
            person judged one of its items; where that holds for every query of the people who never train,
            `FederatedPreferences.matched` is None.
    """
    held = [pairs for d in drawn for pairs in (d.train, d.test)]
    ends = torch.cat(held)
    codes, index = torch.unique(unordered(ends), return_inverse=True)
    y = torch.where(ends[:, 0] < ends[:, 1], 1, -1).to(torch.int8)
    low, high = codes >> 31, codes & (2**31 - 1)
    parts = [len(pairs) for pairs in held]
    labelled = [LabelledPairs(i, label) for i, label in zip(index.split(parts), y.split(parts), strict=True)]
    names = tuple(sorted({user_groups[d.user] for d in drawn if d.user in user_groups}))
    votes = torch.zeros(len(names), len(codes), dtype=torch.int64)
    clients: dict[str, list[Client]] = {population: [] for population in POPULATIONS}
    split = torch.full((len(codes),), 1)
    for d, train, test in zip(drawn, labelled[::2], labelled[1::2], strict=True):
        group = names.index(user_groups[d.user]) if d.user in user_groups else None
        clients[d.population].append(Client(d.user, group, train, test, d.judgements, d.ratings))
        if group is not None:
            votes[group].index_add_(0, train.index, train.y * d.true)
            votes[group].index_add_(0, test.index, test.y.long())
        if d.population != "validation":
            split[test.index] = 2
    split[torch.cat([train.index for train in labelled[::2]])] = 0
    near, known = (popular[0][low] - popular[0][high]).abs() < matched, (popular[1][low] > 0) & (popular[1][high] > 0)
    any_held_out = any(d.population != "seen" for d in drawn)
    asked = torch.cat([c.test.index for p in POPULATIONS for c in clients[p] if p != "seen" or not any_held_out])
    words: tuple[Split, ...] = ("train", "validation", "test")
    return FederatedPreferences(
        pairs=tuple(
            Pair(items[a].prompt, items[a].text, items[b].text)
            for a, b in zip(low.tolist(), high.tolist(), strict=True)
        ),
        split=tuple(words[i] for i in split.tolist()),
        groups=names,
        opposite=opposites(names),
        group_labels=votes.sign().to(torch.int8),
        clients={p: tuple(sorted(c, key=lambda c: pseudonym(c.client_id))) for p, c in clients.items()},
        items=items,
        matched=near & known if known[asked].any() else None,
    )
