"""Who of some people trains, who is only ever evaluated, and which of their judgements may be seen or are asked.

The three ways to ask are those of `evaluation.queries`. Everything here is about names and rows; `people` makes clients
of it, `draws` their pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedvpa.config import FederationConfig
from fedvpa.preferences.schema import CHOICE, Judgements, Split
from fedvpa.preferences.seeding import generator

TEST_SHARE = 0.25
UNSEEN_SHARE, VALIDATION_SHARE = 0.25, 0.1
VALIDATION_ITEMS = 0.1
SEEN_TEST_SHARE = 0.1
MIN_HELD_OUT, MIN_SEEN_ITEMS = 5, 20
TRAIN, VALIDATION, TEST = 0, 1, 2
"""What an item is for, under `by-prompt` and `new-items`."""
CODES: Mapping[Split, int] = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def people_roles(
    names: Sequence[str], able: Sequence[bool], federation: FederationConfig, seed: int, counts: Counter[str]
) -> dict[str, str]:
    """Per person the population; people beyond the configured numbers are left out and counted.

    In the order of a SHA-256 of (seed, name), the first quarter of those who can be held out are unseen and the next
    tenth, one at least, for validation. All others train. Where fewer than five can be held out, nobody is; nor is
    anybody for a population of which the configuration wants none, so at a node of a network everybody trains.

    Args:
        names: distinct names.
        able: per name, whether the person gave enough judgements to be held out.
    """
    order = sorted(range(len(names)), key=lambda i: _rank(json.dumps([seed, names[i]])))
    held_out = [names[i] for i in order if able[i]]
    if len(held_out) < MIN_HELD_OUT:
        held_out = []
    unseen = held_out[: int(UNSEEN_SHARE * len(held_out))] if federation.unseen_clients else []
    wanted = max(1, int(VALIDATION_SHARE * len(held_out))) if federation.validation_clients else 0
    validation = held_out[len(unseen) :][:wanted]
    never_train = {*unseen, *validation}
    seen = [names[i] for i in order if names[i] not in never_train]
    roles: dict[str, str] = {}
    for population, users, most, key in (
        ("unseen", unseen, federation.unseen_clients, "unseen_clients"),
        ("validation", validation, federation.validation_clients, "validation_clients"),
        ("seen", seen, federation.clients, "clients"),
    ):
        roles |= dict.fromkeys(users[:most], population)
        counts[f"users beyond federation.{key}"] += max(0, len(users) - most)
    return roles


def split_prompts(prompts: Mapping[str, set[str]], roles: Mapping[str, str]) -> dict[str, Split]:
    """The split of each prompt: user by user, until a quarter of the user's prompts (one at least) is for testing.

    Test prompts are ``validation`` where only validation users have labelled them, and where they have labelled them
    among others in half of the cases. Hashes of the prompts decide, so an order of users gives one split.

    Args:
        prompts: per user the prompts (`schema.prompt_key`).
        roles: per user the population.
    """
    tested: dict[str, bool] = {}
    for own in prompts.values():
        wanted = max(1, round(TEST_SHARE * len(own))) if len(own) > 1 else 0
        wanted -= sum(tested.get(key, False) for key in own)
        for key in sorted(own - tested.keys(), key=_rank):
            tested[key] = wanted > 0
            wanted -= 1
    owners: dict[str, set[bool]] = {}
    for user, own in prompts.items():
        for key in own:
            owners.setdefault(key, set()).add(roles[user] == "validation")

    def held_out(key: str) -> Split:
        mixed = len(owners[key]) > 1
        return "validation" if (int(_rank(key)[0], 16) % 2 if mixed else True in owners[key]) else "test"

    return {key: held_out(key) if test else "train" for key, test in tested.items()}


def split_items(number: int, seed: int) -> Tensor:
    """(number,) int8 codes: a random quarter of the items is `TEST`, a further tenth `VALIDATION`, the rest `TRAIN`."""
    order = torch.randperm(number, generator=generator(seed, "new items"))
    test, validation = round(TEST_SHARE * number), round(VALIDATION_ITEMS * number)
    codes = torch.full((number,), TRAIN, dtype=torch.int8)
    codes[order[:test]] = TEST
    codes[order[test : test + validation]] = VALIDATION
    return codes


def divide(own: Judgements, population: str, item_codes: Tensor | None, seed: int, user: str) -> tuple[Tensor, Tensor]:
    """Which of a person's judgements may be learnt from, and which are asked; a choice across the border is neither.

    Args:
        own: the person's judgements, n rows.
        population: whether the person is seen, validation or unseen.
        item_codes: (items,) what each item is for; None where each person's own items are divided (`known-items`): the
            items of somebody who never trains are halved, of somebody who trains a tenth is asked (of 20 or more).

    Returns:
        (n,) bool and (n,) bool.
    """
    second = torch.where(own.second < 0, own.first, own.second)
    if item_codes is not None:
        asked = VALIDATION if population == "validation" else TEST
        a, b = item_codes[own.first], item_codes[second]
        return (a == TRAIN) & (b == TRAIN), (a == asked) & (b == asked)
    items, where = torch.unique(torch.cat([own.first, second]), return_inverse=True)
    a, b = where.chunk(2)
    choices = own.kind == CHOICE
    order = _neighbours_together(len(items), a[choices].tolist(), b[choices].tolist(), generator(seed, "items", user))
    share = 0.5 if population != "seen" else SEEN_TEST_SHARE if len(items) >= MIN_SEEN_ITEMS else 0.0
    asked_items = torch.zeros(len(items), dtype=torch.bool)
    asked_items[order[len(order) - int(share * len(order)) :]] = True
    return ~asked_items[a] & ~asked_items[b], asked_items[a] & asked_items[b]


def _neighbours_together(number: int, first: list[int], second: list[int], rng: torch.Generator) -> Tensor:
    """Items 0..number-1 in a random order, where those that were compared with each other stand near each other.

    Breadth first from random starts, so that a cut of the order separates few choices (graph growing, Karypis and Kumar
    1998). Without choices it is a random permutation.
    """
    starts = torch.randperm(number, generator=rng)
    if not first:
        return starts
    compared: list[list[int]] = [[] for _ in range(number)]
    for i, k in zip(first, second, strict=True):
        compared[i].append(k)
        compared[k].append(i)
    order: list[int] = []
    met = [False] * number
    for start in starts.tolist():
        queue = deque([] if met[start] else [start])
        met[start] = True
        while queue:
            order.append(queue.popleft())
            for k in compared[order[-1]]:
                if not met[k]:
                    met[k] = True
                    queue.append(k)
    return torch.tensor(order)


def _rank(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
