"""Divides labelled pairs among clients: seen, validation, unseen and, where a source has such a test, switching.

`partition` makes users out of groups (every source but the user's own file); `users.federate` divides real users.
Every draw comes from a generator of (seed, purpose, client), so a client's pairs depend neither on the method nor
on how many clients there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedvpa.config import CONTEXT_SIZES, DataConfig, FederationConfig
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Client, FederatedPreferences, LabelledPairs, LabelledPool, Split
from fedvpa.preferences.seeding import generator

_PREFIX = {"seen": "client", "validation": "validation", "unseen": "unseen"}


def partition(
    pool: LabelledPool,
    data: DataConfig,
    federation: FederationConfig,
    seed: int,
    context_pairs: int = max(CONTEXT_SIZES),
) -> FederatedPreferences:
    """Makes the clients of a pool whose groups are known.

    A client of a group draws its pairs without replacement from the training pairs that its group labels; two
    clients may share pairs. Its test pairs are all test pairs that its group labels (for validation clients:
    validation pairs), labelled without noise. Users who never train hold at least ``context_pairs`` pairs to draw
    contexts from, where there are so many.

    Args:
        pool: pairs with each group's labels.
        data: `group_shares`, `pairs_per_client` and `label_noise` matter here.
        federation: the numbers of clients per population.
        seed: the experiment's seed. The same seed gives the same clients; more clients leave the earlier ones alone.
        context_pairs: the largest context that is evaluated.

    Raises:
        UserError: shares that do not fit the groups, or a group without training or test pairs.
    """
    shares = _shares(pool, data)
    draw = _Draw(pool, data.label_noise, seed)
    held_out = max(data.pairs_per_client, context_pairs, max(CONTEXT_SIZES))
    plan: tuple[tuple[str, int, int, Split], ...] = (
        ("seen", federation.clients, data.pairs_per_client, "test"),
        ("validation", federation.validation_clients, held_out, "validation"),
        ("unseen", federation.unseen_clients, held_out, "test"),
    )
    clients = {
        population: tuple(
            Client(
                client_id=f"{_PREFIX[population]}-{i:03d}",
                group=group,
                train=draw.context(group, pairs, population, i),
                test=draw.all(group, split),
            )
            for i, group in enumerate(assign_groups(shares, number))
        )
        for population, number, pairs, split in plan
    }
    return FederatedPreferences(
        pairs=pool.pairs,
        split=pool.split,
        groups=pool.groups,
        opposite=pool.opposite,
        group_labels=pool.group_labels,
        clients=clients,
        switching=_switching(pool, draw, federation.unseen_clients, held_out),
        counts=pool.counts,
        notes=pool.notes,
    )


def assign_groups(shares: Sequence[float], clients: int) -> list[int]:
    """The group of each client, so that each group's number of clients is its share rounded down or up.

    This is the quota method (Balinski and Young 1975). Largest remainders have the same property, but with them one
    more client may take a client away from a group; here more clients leave the earlier ones where they are.
    """
    counts = [0] * len(shares)
    groups = []
    for i in range(clients):
        open_ = [g for g, share in enumerate(shares) if counts[g] < share * (i + 1) - 1e-9]
        group = max(open_, key=lambda g: (shares[g] / (counts[g] + 1), -g))
        counts[group] += 1
        groups.append(group)
    return groups


def with_noise(y: Tensor, noise: float, *parts: int | str) -> Tensor:
    """Labels of which each is exchanged with probability ``noise``; the generator is that of ``parts``."""
    if not noise:
        return y
    flip = torch.rand(len(y), generator=generator("label noise", *parts), dtype=torch.float64) < noise
    return torch.where(flip, -y, y)


class _Draw:
    """Draws from a pool, with the rows of each group and split found once."""

    def __init__(self, pool: LabelledPool, noise: float, seed: int) -> None:
        self.pool, self.noise, self.seed = pool, noise, seed
        self._all: dict[tuple[int, Split], LabelledPairs] = {}

    def all(self, group: int, split: Split) -> LabelledPairs:
        """All pairs of a split that a group labels, in the pool's order; one object for all clients of the group."""
        if (group, split) not in self._all:
            in_split = torch.tensor([s == split for s in self.pool.split], dtype=torch.bool)
            index = (in_split & self.pool.group_labels[group].ne(0)).nonzero().flatten()
            if not len(index):
                problem = f"group {self.pool.groups[group]!r} labels no {split} pair"
                raise UserError(problem, "give more data or other groups", field="data")
            self._all[group, split] = LabelledPairs(index, self.pool.group_labels[group, index])
        return self._all[group, split]

    def context(self, group: int, number: int, purpose: str, client: int) -> LabelledPairs:
        """Training pairs of one client, without replacement, with label noise."""
        pairs = self.all(group, "train")
        chosen = torch.randperm(len(pairs), generator=generator(self.seed, purpose, client, group))[:number]
        y = with_noise(pairs.y[chosen], self.noise, self.seed, purpose, client, group)
        return LabelledPairs(pairs.index[chosen], y)


def _switching(pool: LabelledPool, draw: _Draw, users: int, context_pairs: int) -> tuple[Client, ...]:
    """Per unseen user and group a client whose test pairs are those of the other groups, with opposite labels."""
    if pool.switching_labels is None or not pool.switching_labels.ne(0).any():
        return ()
    tests = []
    for labels in pool.switching_labels:
        index = labels.nonzero().flatten()
        tests.append(LabelledPairs(index, labels[index]))
    return tuple(
        Client(f"switching-{i:03d}-{name}", group, draw.context(group, context_pairs, "switching", i), tests[group])
        for i in range(users)
        for group, name in enumerate(pool.groups)
    )


def _shares(pool: LabelledPool, data: DataConfig) -> tuple[float, ...]:
    if data.group_shares is None:
        return (1 / len(pool.groups),) * len(pool.groups)
    if len(data.group_shares) != len(pool.groups):
        problem = f"{len(data.group_shares)} shares for {len(pool.groups)} groups ({', '.join(pool.groups)})"
        raise UserError(problem, "give one share per group", field="data.group_shares")
    return data.group_shares
