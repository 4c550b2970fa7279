"""From what people judged to clients: real people, their training judgements, contexts and queries.

Every source of real people gives a `PeopleTable`; `federate_people` is the one way from there to clients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from torch import Tensor

from fedvpa.config import DataConfig, EvaluationConfig, FederationConfig
from fedvpa.errors import UserError
from fedvpa.preferences.clients import with_noise
from fedvpa.preferences.draws import draw_context, draw_judgements, draw_pairs, ends, preference
from fedvpa.preferences.people_pool import Drawn, assemble
from fedvpa.preferences.popularity import popularity
from fedvpa.preferences.schema import (
    CHOICE,
    RATING,
    VOTE,
    FederatedPreferences,
    Item,
    Judgements,
    Prompt,
    RatingSums,
    joined,
    prompt_key,
)
from fedvpa.preferences.seeding import generator
from fedvpa.preferences.splits import CODES, divide, people_roles, split_items, split_prompts

MIN_JUDGEMENTS = 2
MIN_CONTEXT_CHOICES = 2
CONTEXT_JUDGEMENTS = 64
"""A held-out person's context has up to so many judgements (or the largest evaluated size), and half as many pairs."""


@dataclass(frozen=True)
class PeopleTable:
    """What people judged, as a source gives it, before anybody is made a client.

    Attributes:
        items: the texts that are judged.
        users: distinct names.
        user: (n,) int64 position in ``users``.
        judgements: n rows; a `RATING`'s value is as the person gave it.
        groups: user to true group, where known (for evaluation only).
        counts: what was read, dropped and why.
        notes: sentences to show beside results, for instance a data set's attribution.
        columns: which columns were taken for what, in one line.
    """

    items: tuple[Item, ...]
    users: tuple[str, ...]
    user: Tensor
    judgements: Judgements
    groups: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    columns: str = ""


@dataclass(frozen=True)
class _Judged:
    """A table without repetitions. Items are in the order of their digests, so of two the first is a pair's ``a``."""

    items: tuple[Item, ...]
    own: Mapping[str, Judgements]
    prompts: Tensor
    keys: tuple[str, ...]

    def keys_of(self, user: str) -> set[str]:
        """The prompts (`schema.prompt_key`) that a person judged."""
        return {self.keys[i] for i in self.prompts[self.own[user].first].unique().tolist()}


def federate_people(
    table: PeopleTable, data: DataConfig, federation: FederationConfig, evaluation: EvaluationConfig, seed: int
) -> FederatedPreferences:
    """Makes a client of each person who judged enough.

    **Roles** (`splits.people_roles`). A quarter of the people are unseen, a tenth for validation, the rest train. To be
    held out a person gave `data.min_votes` agreements and as many disagreements, or twice as many ratings, or as many
    choices (and under ``by-prompt`` judged two prompts). People with fewer train if two judgements or more make a pair.
    The exploration that shared/data/README.md describes left such people out.

    **Queries** (`evaluation.queries`), up to `evaluation.queries_per_user` random pairs a person:

    - ``by-prompt``: about a quarter of the prompts is for testing (`splits.split_prompts`).
    - ``known-items``: half of a held-out person's items are for the context and half for queries; of a training person
      with 20 items or more a tenth is for queries. A choice between the two parts is left out.
    - ``new-items``: a quarter of all items is for queries of seen and unseen people, a tenth for those of validation
      people. None of them stands in a training judgement or a context. (The exploration had no items for validation.)

    **Training people** hold up to `data.pairs_per_client` random pairs, and the judgements that tell as much: twice as
    many random votes or ratings (a choice counts as two). **Held-out people** hold a context, see `draws.draw_context`;
    those with fewer than `data.min_votes` pairs in it (2 where they gave choices) or without a query are left out.

    `data.label_noise` exchanges a training judgement, before pairs are made from it; a rating is mirrored at the mean
    of the training people in this table. The same seed gives the same clients, in whatever order the table is.

    Args:
        table: what people judged. Equal items count as one; a repeated judgement counts once, and a person's
            judgements that contradict each other not at all.
        data: `pairs_per_client`, `label_noise`, `min_gap` and `min_votes` matter here.
        federation: the numbers of clients per population; people beyond them are left out.
        evaluation: `queries`, `queries_per_user`, `matched` and `context_sizes`.
        seed: of all draws.

    Raises:
        UserError: nobody can train (perhaps because all ratings are equal), or nothing can be tested with this split.
    """
    counts = Counter(table.counts)
    judged = _judged(table, counts)
    able = [_can_be_held_out(judged, user, data.min_votes, evaluation.queries) for user in judged.own]
    roles = people_roles(list(judged.own), able, federation, seed, counts)
    codes = _item_codes(judged, roles, evaluation.queries, seed)
    parts = {user: divide(judged.own[user], role, codes, seed, user) for user, role in roles.items()}
    seen = [user for user, role in roles.items() if role == "seen"]
    ratings = _ratings([judged.own[user][parts[user][0]] for user in seen])
    if evaluation.queries == "known-items":
        counts["choices across a person's two parts"] += sum(
            int((~learnt & ~asked).sum()) for learnt, asked in parts.values()
        )
    drawn = []
    for user, role in roles.items():
        noisy = _with_noise(judged.own[user], ratings, data.label_noise, seed, user)
        client = _draw(user, role, judged, noisy, *parts[user], data, evaluation, seed)
        if (why := _unfit(client, data.min_votes)) is None:
            drawn.append(client)
        else:
            counts[why] += 1
    _check(drawn, ratings, evaluation.queries)
    training = [judged.own[client.user] for client in drawn if client.population == "seen"]
    popular = popularity(joined(training), len(judged.items))
    made = assemble(drawn, judged.items, table.groups, popular, evaluation.matched)
    counts["pairs"] += len(made.pairs)
    return replace(made, counts=dict(counts), notes=table.notes)


def _judged(table: PeopleTable, counts: Counter[str]) -> _Judged:
    """Equal items as one, each choice's smaller item first, each judgement once and in one order."""
    items = tuple(sorted(set(table.items), key=lambda item: item.digest))
    place = {item: i for i, item in enumerate(items)}
    new = torch.tensor([place[item] for item in table.items], dtype=torch.int64)
    j = table.judgements
    choice = j.kind == CHOICE
    ends = torch.where(choice, torch.stack([new[j.first], new[j.second.clamp(min=0)]]), new[j.first])
    value = torch.where(choice & (ends[0] > ends[1]), -j.value, j.value)
    first, second = ends.amin(0), torch.where(choice, ends.amax(0), -1)
    code = ((table.user * 3 + j.kind) * len(items) + first) * (len(items) + 1) + second + 1
    codes, where = torch.unique(code, return_inverse=True)
    lowest, highest = (
        torch.zeros(len(codes)).scatter_reduce(0, where, value, reduce, include_self=False)
        for reduce in ("amin", "amax")
    )
    agree = lowest == highest
    rows = torch.zeros_like(codes).scatter_reduce(0, where, torch.arange(len(code)), "amin", include_self=False)
    counts["judgements"] += len(code)
    counts["repeated judgements"] += len(code) - len(codes)
    counts["contradictory judgements"] += int((~agree).sum())
    rows = rows[agree & (first[rows] != second[rows])]
    clean = Judgements(first, second, value, j.kind, j.weight)[rows]
    numbers = torch.bincount(table.user[rows], minlength=len(table.users)).tolist()
    start = [0, *torch.tensor(numbers).cumsum(0).tolist()]
    own = {u: clean[start[i] : start[i + 1]] for i, u in enumerate(table.users) if numbers[i] >= MIN_JUDGEMENTS}
    counts[f"users with fewer than {MIN_JUDGEMENTS} judgements"] += len(table.users) - len(own)
    prompts: dict[Prompt, int] = {}
    of_item = torch.tensor([prompts.setdefault(item.prompt, len(prompts)) for item in items], dtype=torch.int64)
    return _Judged(items, own, of_item, tuple(map(prompt_key, prompts)))


def _can_be_held_out(judged: _Judged, user: str, least: int, queries: str) -> bool:
    own = judged.own[user]
    if queries == "by-prompt" and len(judged.keys_of(user)) < 2:
        return False
    vote = own.kind == VOTE
    agreed, disagreed = int((vote & (own.value > 0)).sum()), int((vote & (own.value < 0)).sum())
    rated, chosen = int((own.kind == RATING).sum()), int((own.kind == CHOICE).sum())
    return min(agreed, disagreed) >= least or rated >= 2 * least or chosen >= least


def _item_codes(judged: _Judged, roles: Mapping[str, str], queries: str, seed: int) -> Tensor | None:
    """(items,) what each item is for (`splits.CODES`); None where each person's own items are divided."""
    if queries == "known-items":
        return None
    if queries == "new-items":
        return split_items(len(judged.items), seed)
    prompts = {user: judged.keys_of(user) for user in roles}
    if all(len(own) < 2 for own in prompts.values()):
        single = len(set().union(*prompts.values())) < 2
        problem = "there is only one prompt" if single else "nobody judged more than one prompt"
        raise UserError(f"nothing can be tested by prompt: {problem}", _other(queries), field="evaluation.queries")
    split = split_prompts(prompts, roles)
    of_prompt = torch.tensor([CODES[split.get(key, "test")] for key in judged.keys], dtype=torch.int8)
    return of_prompt[judged.prompts]


def _ratings(training: Sequence[Judgements]) -> Tensor:
    """The training people's ratings that may be learnt from, float64."""
    return torch.cat([own.value[own.kind == RATING] for own in training] or [torch.zeros(0)]).double()


def _with_noise(own: Judgements, ratings: Tensor, noise: float, seed: int, user: str) -> Judgements:
    """Votes and choices of which some are exchanged, ratings of which some are mirrored at the mean of `ratings`."""
    if not noise:
        return own
    centre = float(ratings.mean()) if len(ratings) else 0.0
    mirrored = torch.where(own.kind == RATING, 2 * centre - own.value, -own.value)
    kept = with_noise(torch.ones(len(own)), noise, seed, "user", user) > 0
    return replace(own, value=torch.where(kept, own.value, mirrored))


def _draw(
    user: str,
    population: str,
    judged: _Judged,
    noisy: Judgements,
    learnt: Tensor,
    asked: Tensor,
    data: DataConfig,
    evaluation: EvaluationConfig,
    seed: int,
) -> Drawn:
    clean = judged.own[user]
    own, true, rng = noisy[learnt], clean[learnt], generator(seed, "train", user)
    prompts = judged.prompts[own.first]
    if population == "seen":
        pairs = draw_pairs(own, prompts, data.pairs_per_client, data.min_gap, rng)
        rows = draw_judgements(own, 2 * data.pairs_per_client, rng)
    else:
        most = max(CONTEXT_JUDGEMENTS, *evaluation.context_sizes)
        only_choices = bool((own.kind == CHOICE).all())
        pairs_most = max(most // 2, *evaluation.context_sizes) if only_choices else most // 2
        pairs, rows = draw_context(own, prompts, pairs_most, most, data.min_gap, rng)
    rest = clean[asked]
    queries = draw_pairs(
        rest, judged.prompts[rest.first], evaluation.queries_per_user, data.min_gap, generator(seed, "queries", user)
    )
    plain = bool((own.kind == CHOICE).all() and (own.weight == 1).all())
    return Drawn(
        user=user,
        population=population,
        train=ends(own, pairs),
        true=preference(true, pairs) * preference(own, pairs),
        test=ends(rest, queries),
        judgements=None if plain else own[rows],
        ratings=RatingSums.of(true),
    )


def _unfit(client: Drawn, least: int) -> str | None:
    """Why a client is left out, or None."""
    if client.population == "seen":
        return None if len(client.train) else "users without a training pair"
    if not len(client.test):
        return "held-out users without a query"
    if client.judgements is None or (client.judgements.kind == CHOICE).any():
        least = MIN_CONTEXT_CHOICES
    return None if len(client.train) >= least else "held-out users with too small a context"


def _check(drawn: Sequence[Drawn], ratings: Tensor, queries: str) -> None:
    if not any(d.population == "seen" for d in drawn):
        if len(ratings) and ratings.min() == ratings.max():
            problem = f"all {len(ratings)} ratings of the training people are {ratings[0]:g}"
            raise UserError(problem, "give ratings that differ, or leave the ratings out", field="rating")
        problem = "no person is left who can train"
        raise UserError(problem, "give each person several judgements that differ, on items of one prompt")
    if not any(len(d.test) for d in drawn):
        problem = f"nothing can be tested with {queries}: nobody judged two of the items that are asked differently"
        raise UserError(problem, _other(queries), field="evaluation.queries")


def _other(queries: str) -> str:
    others = [q for q in get_args(EvaluationConfig.model_fields["queries"].annotation) if q != queries]
    return "set " + " or ".join(f"evaluation.queries={q}" for q in others)
