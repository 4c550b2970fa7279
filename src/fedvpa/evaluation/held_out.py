"""A linear reward model for `judges.RewardModelJudge`, fitted on pairs that the aligning selector never saw.

Two runs on the same benchmark share prompts almost surely, so that a second selector is rarely independent of the
first. This model leaves the first one's prompts out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedvpa.backbone.features import TextEncoder
from fedvpa.errors import UserError
from fedvpa.federation.moments import Standardizer, client_moments, combine
from fedvpa.methods.base import Pool
from fedvpa.methods.supervised import INVERSE_DECAYS, Labelled, accuracy, linear_bradley_terry, linear_scores
from fedvpa.preferences.schema import FederatedPreferences, Prompt, prompt_key
from fedvpa.preferences.seeding import generator

_HELD = 5
"""Every fifth prompt chooses the decay."""
_FEWEST = 20
"""Prompts below which a model would be no judge."""


@dataclass(frozen=True)
class LinearReward:
    """<w, h(x, r)>, a reward for each response (Bradley-Terry).

    Attributes:
        backbone, standardizer: make features; w: (D,) float64.
        trained_on: keys of the prompts that it was fitted on, or that chose its decay.
        accuracy: share of the choice's pairs that it orders rightly; slightly high, as it is the best of a few decays.
    """

    backbone: TextEncoder
    standardizer: Standardizer
    w: Tensor
    trained_on: frozenset[str]
    accuracy: float

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """Rewards (n,) of n responses, none of them empty, to n prompts."""
        return self.standardizer(self.backbone.encode_texts(prompts, responses)).double() @ self.w


def fit_held_out(
    backbone: TextEncoder,
    data: FederatedPreferences,
    group: str,
    exclude: Collection[str],
    *,
    pairs: int = 600,
    seed: int = 0,
) -> LinearReward:
    """Fits a reward model for a group of users on training pairs of other prompts than ``exclude``.

    Args:
        data: pairs with each group's labels (`group_labels`).
        exclude: prompt keys, such as `judges.training_prompts` of the selector's run and the prompts to be judged.
        pairs: at most so many are drawn; each costs two texts through the backbone.
        seed: seeds the draw.

    Raises:
        UserError: an unknown group, or hardly any pair left.
    """
    if group not in data.groups:
        raise UserError(f"no group {group!r}", f"choose from {', '.join(data.groups)}", field="group")
    labels = data.group_labels[data.groups.index(group)]
    keys = [prompt_key(p.prompt) if s == "train" else "" for p, s in zip(data.pairs, data.split, strict=True)]
    excluded = set(exclude)
    free = [i for i, (key, s) in enumerate(zip(keys, data.split, strict=True)) if s == "train" and key not in excluded]
    rows = torch.tensor([i for i in free if labels[i] != 0], dtype=torch.int64)
    rows = rows[torch.randperm(len(rows), generator=generator(seed, "held-out reward", group))[:pairs]]
    drawn = sorted({keys[i] for i in rows.tolist()})
    if len(drawn) < _FEWEST:
        problem = f"only {len(drawn)} prompts are left that the selector has not seen"
        raise UserError(problem, "train the selector on fewer pairs, or give more data", field="exclude")
    features = backbone.encode_pairs([data.pairs[i] for i in rows.tolist()])
    x = features.items[features.pairs]
    chooses = torch.tensor([keys[i] in set(drawn[::_HELD]) for i in rows.tolist()])
    standardizer = combine([client_moments(x[~chooses].flatten(0, 1))])
    pool, y = Pool.of_pairs(standardizer(x).double()), labels[rows].double()
    fit, choice = (Labelled(m.nonzero().flatten(), y[m]) for m in (~chooses, chooses))
    models = [linear_bradley_terry(pool, fit, c) for c in INVERSE_DECAYS]
    hits = [accuracy(linear_scores(pool, w), choice) for w in models]
    best = max(range(len(models)), key=lambda k: hits[k])
    return LinearReward(backbone, standardizer, models[best], frozenset(drawn), hits[best])
