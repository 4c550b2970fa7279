"""Draws pairs and judgements from what one person judged.

A drawn pair is two rows of the person's judgements, the preferred item's first; a choice is a pair by itself, twice its
own row. Rows are drawn with the generator that is given, so the same generator gives the same pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedvpa.preferences.schema import CHOICE, RATING, VOTE, Judgements

MANY = 2**17
"""Couples of one person's votes or ratings that are looked at, at most."""
ROUNDING = 1e-5
"""Ratings are float32: 0.4 and -1.6 are at least 2 apart."""


def draw_pairs(own: Judgements, prompts: Tensor, number: int, gap: float, rng: torch.Generator) -> Tensor:
    """Up to ``number`` random pairs of items of one prompt that the person judged differently, no two items twice.

    Args:
        own: n judgements; of votes a yes stands over a no, of ratings the higher over the lower.
        prompts: (n,) the number of the prompt of each judgement's items.
        gap: least difference of two ratings; 0: any difference.

    Returns:
        (pairs, 2) rows of ``own``.
    """
    choices = (own.kind == CHOICE).nonzero().flatten()
    parts = (
        torch.stack([choices, choices], 1),
        _couples(own, prompts, VOTE, 0.0, number, rng),
        _couples(own, prompts, RATING, gap, number, rng),
    )
    found = torch.cat(parts)
    if max(map(len, parts)) < len(found):
        found = found[first_of_each(unordered(ends(own, found)))]
    return found[torch.randperm(len(found), generator=rng)[:number]]


def draw_context(
    own: Judgements, prompts: Tensor, pairs: int, judgements: int, gap: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A person's context in the order in which it is used.

    The judgements are shuffled. Pairs of fresh items come first, as far as there are such: each vote with the first
    opposite one that is left, each rating with the first that is left and far enough away, each choice by itself. Then
    come pairs whose items have occurred. The judgements are those of the pairs, in the order of appearance, then the
    person's others. So the first k pairs are made from the first 2 k judgements, and a shorter context is a beginning
    of a longer one.

    Args:
        own, prompts, gap: as in `draw_pairs`.
        pairs, judgements: the largest numbers of each.

    Returns:
        (pairs, 2) and (judgements,) rows of ``own``.
    """
    order = torch.randperm(len(own), generator=rng)
    shuffled, shuffled_prompts = own[order], prompts[order]
    fresh = _fresh(shuffled, shuffled_prompts, pairs, gap)
    found = torch.cat([fresh, draw_pairs(shuffled, shuffled_prompts, 2 * pairs, gap, rng)])
    found = found[first_of_each(unordered(ends(shuffled, found)))][:pairs]
    rows = torch.cat([found.flatten(), torch.arange(len(own))])
    rows = rows[first_of_each(rows)][:judgements]
    return order[found], order[rows]


def draw_judgements(own: Judgements, votes: int, rng: torch.Generator) -> Tensor:
    """Random rows of as many judgements as ``votes`` votes tell; a choice counts as two votes, a rating as one."""
    order = torch.randperm(len(own), generator=rng)
    return order[torch.where(own.kind[order] == CHOICE, 2, 1).cumsum(0) <= votes]


def ends(own: Judgements, pairs: Tensor) -> Tensor:
    """(pairs, 2) the items of drawn pairs, the preferred one first."""
    first, second, value = own.first[pairs[:, 0]], own.second[pairs[:, 0]], own.value[pairs[:, 0]]
    choice = own.kind[pairs[:, 0]] == CHOICE
    high = torch.where(choice & (value < 0), second, first)
    low = torch.where(choice, torch.where(value < 0, first, second), own.first[pairs[:, 1]])
    return torch.stack([high, low], 1)


def preference(own: Judgements, pairs: Tensor) -> Tensor:
    """(pairs,) int64: +1 where the first row's item (of a choice ``first``) is preferred, -1 the other, 0 neither."""
    choice = own.kind[pairs[:, 0]] == CHOICE
    difference = own.value[pairs[:, 0]] - torch.where(choice, 0.0, own.value[pairs[:, 1]])
    return difference.sign().long()


def unordered(items: Tensor) -> Tensor:
    """(n,) one number per two items (n, 2), the same in either order."""
    return items.amin(1) << 31 | items.amax(1)


def first_of_each(keys: Tensor) -> Tensor:
    """Positions of the first occurrence of every value of keys (n,), ascending."""
    values, where = torch.unique(keys, return_inverse=True)
    first = torch.full((len(values),), len(keys)).scatter_reduce(0, where, torch.arange(len(keys)), "amin")
    return first.sort().values


def _couples(own: Judgements, prompts: Tensor, kind: int, gap: float, number: int, rng: torch.Generator) -> Tensor:
    """(pairs, 2) rows of random couples of votes or of ratings, the higher first."""
    rows = (own.kind == kind).nonzero().flatten()
    rows = rows[prompts[rows].argsort(stable=True)]
    high = rows if kind == RATING else rows[own.value[rows] > 0]
    low = rows if kind == RATING else rows[own.value[rows] < 0]
    if not len(high) or not len(low):
        return torch.empty(0, 2, dtype=torch.int64)
    start = torch.searchsorted(prompts[low], prompts[high])
    partners = torch.searchsorted(prompts[low], prompts[high], right=True) - start
    last = partners.cumsum(0)
    total = int(last[-1])
    if total > MANY:
        drawn = torch.randint(total, (MANY,), generator=rng).unique()
        drawn = drawn[torch.randperm(len(drawn), generator=rng)]
    else:
        drawn = torch.randperm(total, generator=rng)
    if kind == VOTE:
        drawn = drawn[:number]
    at = torch.searchsorted(last, drawn, right=True)
    above, below = high[at], low[(start + partners - last)[at] + drawn]
    far = _far(own.value[above] - own.value[below], gap).nonzero().flatten()[:number]
    return torch.stack([above[far], below[far]], 1)


def _far(difference: Any, gap: float) -> Any:
    return (difference > 0) & (difference >= gap * (1 - ROUNDING))


def _fresh(own: Judgements, prompts: Tensor, number: int, gap: float) -> Tensor:
    """(pairs, 2) rows of couples in the given order, none of them twice, and choices."""
    kinds, values, at = own.kind.tolist(), own.value.tolist(), prompts.tolist()
    waiting: dict[tuple[int, int, bool], list[int]] = {}
    found: list[tuple[int, int]] = []
    for i, (kind, value) in enumerate(zip(kinds, values, strict=True)):
        if len(found) == number:
            break
        if kind == CHOICE:
            found.append((i, i))
            continue
        least = gap if kind == RATING else 0.0
        others = waiting.get((kind, at[i], kind == VOTE and value < 0), [])
        partner = next(
            (k for k in others if value != values[k] and abs(value - values[k]) >= least * (1 - ROUNDING)), None
        )
        if partner is None:
            waiting.setdefault((kind, at[i], kind == VOTE and value > 0), []).append(i)
        else:
            others.remove(partner)
            found.append((partner, i) if values[partner] > value else (i, partner))
    return torch.tensor(found, dtype=torch.int64).view(-1, 2)
