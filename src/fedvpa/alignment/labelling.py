"""The frozen selector labels candidates under several latents, which makes preference pairs (method.md, section 8).

The same two candidates are labelled once per latent. Where latents disagree there is something to switch. The label
comes from the selector only: no rule filters a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedvpa.alignment.config import LabelsConfig
from fedvpa.alignment.language import Response
from fedvpa.errors import UserError
from fedvpa.evaluation.protocol import context_order
from fedvpa.preferences.schema import Client, FederatedPreferences, Pair, Prompt
from fedvpa.preferences.seeding import generator
from fedvpa.selector import Selector
from fedvpa.user import User, latent_of
from fedvpa.variational.inference import Particles

FEW = 0.05
"""Share of conflicting labels under which there is little to switch."""


class Latent(NamedTuple):
    """Somebody to label for: a name for the report, and the user as the selector knows it."""

    name: str
    user: User

    @property
    def z(self) -> tuple[float, ...]:
        """(d) what the policy is conditioned on: the mean of the latents that predictions are made with."""
        return point_of(self.user)


class Preference(NamedTuple):
    """Under latent number ``latent``, ``chosen`` is preferred to ``rejected`` as responses to prompt number ``prompt``.

    margin: by how much their mean probabilities to be preferred to another candidate differ.
    """

    prompt: int
    latent: int
    chosen: Response
    rejected: Response
    margin: float


@dataclass(frozen=True)
class Labels:
    """What the selector says.

    Attributes:
        preferences: to train on.
        conflict: (latents, latents) share of the candidate couples that two latents label differently.
        couples: how many couples there are; empty: candidates without text, which are left out.
    """

    preferences: tuple[Preference, ...]
    conflict: Tensor
    couples: int
    empty: int

    @property
    def conflict_share(self) -> float | None:
        """Mean share over pairs of latents; None with a single latent."""
        n = len(self.conflict)
        return float(self.conflict.sum() / (n * (n - 1))) if n > 1 else None

    @property
    def few_conflicts(self) -> bool:
        return self.conflict_share is not None and self.conflict_share < FEW


def point_of(user: User) -> tuple[float, ...]:
    """(d) the mean latent of a user; nothing for a model without a latent."""
    latent = latent_of(user, torch.float64)
    return tuple(latent.mean[0].tolist()) if isinstance(latent, Particles) else ()


def labelling_latents(selector: Selector, data: FederatedPreferences, config: LabelsConfig, seed: int) -> list[Latent]:
    """The prototypes, and seen users drawn at random, each inferred from its own context.

    A selector without a latent has one: nobody in particular.
    """
    if not selector.method.latent:
        return [Latent("everybody", selector.infer_pairs([]))]
    found = [
        Latent(f"prototype {k}", selector.blend({k: 1.0})) for k in range(len(selector.centres) * config.prototypes)
    ]
    seen = data.clients["seen"]
    drawn = torch.randperm(len(seen), generator=generator(seed, "labelling users"))[: config.users].tolist()
    return found + inferred(selector, data, [seen[i] for i in drawn], config.context_pairs)


def inferred(
    selector: Selector, data: FederatedPreferences, clients: Sequence[Client], context_pairs: int
) -> list[Latent]:
    """Users, each inferred from the first pairs of its context, in the order in which the run measured it."""
    found = []
    for client in clients:
        first = context_order(client, selector.info.config.seed)[:context_pairs]
        rows, labels = client.train.index[first].tolist(), client.train.y[first].tolist()
        user = selector.infer_pairs([(data.pairs[i], y) for i, y in zip(rows, labels, strict=True)])
        found.append(Latent(client.client_id, user))
    return found


def label(
    selector: Selector,
    prompts: Sequence[Prompt],
    candidates: Sequence[Sequence[Response]],
    latents: Sequence[Latent],
    config: LabelsConfig,
) -> Labels:
    """Labels candidates under every latent and picks the pairs to train on.

    Per prompt and latent a candidate's score is its mean probability to be preferred to another candidate; the best
    meets the worst (and the second best the second worst, ...). Of these pairs every latent gives the same number,
    those with the largest margins.

    Raises:
        UserError: no prompt has two different candidates with text.
    """
    usable = [list({r.text: r for r in responses if r.text}.values()) for responses in candidates]
    couples = [(i, a, b) for i, r in enumerate(usable) for a in range(len(r)) for b in range(a + 1, len(r))]
    if not couples:
        raise UserError("no prompt has two different candidates", "raise candidates.temperature", field="candidates")
    pairs = [Pair(prompts[i], usable[i][a].text, usable[i][b].text) for i, a, b in couples]
    p = selector.preferences(pairs, [latent.user for latent in latents]).double()
    scores = _scores(p, couples, usable)
    quota = -(-config.pairs // len(latents))
    preferences: list[Preference] = []
    for k in range(len(latents)):
        mine = [
            Preference(i, k, usable[i][best], usable[i][worst], float(score[k, best] - score[k, worst]))
            for i, score in enumerate(scores)
            for best, worst in _extremes(score[k], config.per_prompt)
        ]
        preferences += sorted(mine, key=lambda x: (-x.margin, x.prompt))[:quota]
    empty = sum(not r.text for responses in candidates for r in responses)
    return Labels(tuple(preferences), _conflict(p), len(couples), empty)


def _scores(p: Tensor, couples: Sequence[tuple[int, int, int]], usable: Sequence[Sequence[Response]]) -> list[Tensor]:
    """Per prompt (latents, candidates), the mean probability to be preferred to another candidate."""
    scores = [torch.zeros(len(p), len(r), dtype=p.dtype) for r in usable]
    for column, (i, a, b) in zip(p.T, couples, strict=True):
        scores[i][:, a] += column / (len(usable[i]) - 1)
        scores[i][:, b] += (1 - column) / (len(usable[i]) - 1)
    return scores


def _extremes(score: Tensor, number: int) -> list[tuple[int, int]]:
    """Best and worst, then second best and second worst, ... of one prompt's candidates."""
    order = score.argsort(descending=True, stable=True).tolist()
    return [(order[j], order[-1 - j]) for j in range(min(number, len(order) // 2))]


def _conflict(p: Tensor) -> Tensor:
    """(latents, latents) share of the couples (columns) on which two latents (rows) disagree."""
    sign = (p > 0.5).double()
    n = p.shape[1]
    return (sign @ (1 - sign).T + (1 - sign) @ sign.T) / n
