"""Divides the real users of a file into clients: who trains, who is for validation, who is only ever evaluated.

Roles and splits come from hashes of names and texts, not from the seed: a user who is unseen is unseen in every run.
The seed decides which pairs are drawn where a user has more than `data.pairs_per_client`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedvpa.config import CONTEXT_SIZES, DataConfig, FederationConfig
from fedvpa.errors import UserError
from fedvpa.preferences.attributes import opposites
from fedvpa.preferences.clients import with_noise
from fedvpa.preferences.jsonl import PreferenceRow
from fedvpa.preferences.schema import Client, FederatedPreferences, LabelledPairs, Pair, Split, prompt_key
from fedvpa.preferences.seeding import generator
from fedvpa.preferences.splits import split_prompts

HELD_OUT_SHARE = 0.2
MIN_PAIRS = 2


def federate(
    rows: Sequence[PreferenceRow],
    data: DataConfig,
    federation: FederationConfig,
    seed: int,
    counts: Counter[str] | None = None,
    file: str | Path | None = None,
    context_pairs: int = max(CONTEXT_SIZES),
) -> FederatedPreferences:
    """Makes a client of each user.

    Of each population at most `federation.validation_clients`, `unseen_clients` and `clients` users are taken, and
    for validation and unseen never more than a fifth of the users each (so none at all of fewer than five). About a
    quarter of each user's prompts are for testing. A prompt lies in one split, whoever labelled it: test prompts are
    ``validation`` where only validation users have labelled them, and where they have labelled them among others
    in half of the cases.

    The clients of a population are in the order of a hash of their names, as in a training over a network, where the
    server knows no more of them than such a hash.

    Left out, with a count: repeated rows, contradictory rows (the same user for both responses), users with
    fewer than two pairs, users without a training pair, users beyond the numbers asked for. Users who never train
    keep at least ``context_pairs`` pairs (the largest context that is evaluated) where they have so many.

    Raises:
        UserError: no user who can train is left.
    """
    counts = Counter() if counts is None else counts
    counts["rows"] += len(rows)
    labels = {u: own for u, own in _labels(rows, counts).items() if len(own) >= MIN_PAIRS}
    counts["users with fewer than 2 pairs"] += len({r.user for r in rows}) - len(labels)
    roles = _roles(labels, federation, counts)
    split = split_prompts({u: {prompt_key(p.prompt) for p in labels[u]} for u in roles}, roles)
    for user in [u for u in roles if all(split[prompt_key(p.prompt)] != "train" for p in labels[u])]:
        del roles[user]
        counts["users without a training pair"] += 1
    if "seen" not in roles.values():
        raise UserError(
            "no user with 2 pairs or more is left", "give each user several rows", file=file, field="user_id"
        )
    pairs = tuple(dict.fromkeys(p for u in roles for p in labels[u]))
    where = {p: i for i, p in enumerate(pairs)}
    splits = tuple(split[prompt_key(p.prompt)] for p in pairs)
    names = {r.user: r.group for r in rows if r.user in roles}
    groups = tuple(sorted({g for g in names.values() if g is not None}))
    clients: dict[str, list[Client]] = {"seen": [], "validation": [], "unseen": []}
    for user, role in roles.items():
        own = LabelledPairs.of((where[p] for p in labels[user]), labels[user].values())
        name = names[user]
        group = None if name is None else groups.index(name)
        limit = (
            data.pairs_per_client if role == "seen" else max(data.pairs_per_client, context_pairs, max(CONTEXT_SIZES))
        )
        train = _take(_of_split(own, splits, "train"), limit, data.label_noise, seed, user)
        test = _of_split(own, splits, "validation" if role == "validation" else "test")
        clients[role].append(Client(user, group, train, test))
    counts["pairs"] += len(pairs)
    return FederatedPreferences(
        pairs=pairs,
        split=splits,
        groups=groups,
        opposite=opposites(groups),
        group_labels=_group_labels(labels, names, groups, where),
        clients={
            population: tuple(sorted(c, key=lambda c: pseudonym(c.client_id))) for population, c in clients.items()
        },
        counts=dict(counts),
    )


def pseudonym(user: str) -> str:
    """16 hex digits of a user's name (SHA-256). Whoever can guess a name can compute it."""
    return _rank(user)[:16]


def is_pseudonym(name: str) -> bool:
    """Whether a name has the form of `pseudonym`."""
    return re.fullmatch("[0-9a-f]{16}", name) is not None


def _labels(rows: Iterable[PreferenceRow], counts: Counter[str]) -> dict[str, dict[Pair, int]]:
    """Per user the label of each pair, in the file's order."""
    seen: dict[str, dict[Pair, set[int]]] = {}
    for row in rows:
        ys = seen.setdefault(row.user, {}).setdefault(row.pair, set())
        counts["repeated rows"] += row.y in ys
        ys.add(row.y)
    counts["contradictory pairs"] += sum(len(ys) > 1 for own in seen.values() for ys in own.values())
    return {u: {p: next(iter(ys)) for p, ys in own.items() if len(ys) == 1} for u, own in seen.items()}


def _roles(
    labels: Mapping[str, Mapping[Pair, int]], federation: FederationConfig, counts: Counter[str]
) -> dict[str, str]:
    """Per user the population, in an order that only the users' names decide.

    Held-out users need two prompts at least, one for contexts and one for queries.
    """
    users = sorted(labels, key=_rank)
    able = [u for u in users if len({prompt_key(p.prompt) for p in labels[u]}) > 1]
    most = int(HELD_OUT_SHARE * len(users))
    unseen = able[: min(federation.unseen_clients, most)]
    validation = able[len(unseen) :][: min(federation.validation_clients, most)]
    held_out = {*unseen, *validation}
    seen = [u for u in users if u not in held_out]
    counts["users beyond federation.clients"] += max(0, len(seen) - federation.clients)
    roles = {u: "unseen" for u in unseen} | {u: "validation" for u in validation}
    return roles | {u: "seen" for u in seen[: federation.clients]}


def _rank(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _of_split(own: LabelledPairs, splits: Sequence[Split], split: Split) -> LabelledPairs:
    keep = torch.tensor([splits[i] == split for i in own.index.tolist()], dtype=torch.bool)
    return LabelledPairs(own.index[keep], own.y[keep])


def _take(own: LabelledPairs, limit: int, noise: float, seed: int, user: str) -> LabelledPairs:
    chosen = torch.randperm(len(own), generator=generator(seed, "user", user))[:limit]
    return LabelledPairs(own.index[chosen], with_noise(own.y[chosen], noise, seed, "user", user))


def _group_labels(
    labels: Mapping[str, Mapping[Pair, int]],
    names: Mapping[str, str | None],
    groups: tuple[str, ...],
    where: Mapping[Pair, int],
) -> Tensor:
    """(groups, pairs) what most of a group's users say, 0 where none has labelled the pair or they are divided."""
    votes = torch.zeros(len(groups), len(where), dtype=torch.int64)
    for user, name in names.items():
        if name is not None:
            for pair, y in labels[user].items():
                votes[groups.index(name), where[pair]] += y
    return votes.sign().to(torch.int8)
