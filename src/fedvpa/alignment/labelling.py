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
from fedvpa.latents import latent_of
from fedvpa.preferences.schema import Client, FederatedPreferences, Pair, Prompt
from fedvpa.preferences.seeding import generator
from fedvpa.selector import Selector
from fedvpa.user import User

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

    margin: by how much the probabilities of the two orders differ.
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
    return () if isinstance(latent, Tensor) else tuple(latent.mean[0].tolist())


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

    A couple of candidates enters twice, side by side in training: preferred one way under a latent, and the other way
    under the one that contradicts it most. So what does not depend on the latent cancels in the gradient of DPO, and
    the policy learns from what does. Only couples that are left when nobody contradicts any more enter alone, as all
    do with a single latent. Latents take turns, each with the couple on which both sides are surest, and with one more
    of the same prompt only when every prompt had its turn, until all have given their part.

    Raises:
        UserError: no prompt has two different candidates with text.
    """
    usable = [list({r.text: r for r in responses if r.text}.values()) for responses in candidates]
    couples = [(i, a, b) for i, r in enumerate(usable) for a in range(len(r)) for b in range(a + 1, len(r))]
    if not couples:
        raise UserError("no prompt has two different candidates", "raise candidates.temperature", field="candidates")
    pairs = [Pair(prompts[i], usable[i][a].text, usable[i][b].text) for i, a, b in couples]
    p = selector.preferences(pairs, [latent.user for latent in latents]).double()
    preferences = []
    for column, k in _chosen(p, [i for i, _, _ in couples], -(-config.pairs // len(latents))):
        i, a, b = couples[column]
        sure = 2 * float(p[k, column]) - 1
        better, worse = (a, b) if sure > 0 else (b, a)
        preferences.append(Preference(i, k, usable[i][better], usable[i][worse], abs(sure)))
    empty = sum(not r.text for responses in candidates for r in responses)
    return Labels(tuple(preferences), _conflict(p), len(couples), empty)


def _chosen(p: Tensor, prompt: Sequence[int], quota: int) -> list[tuple[int, int]]:
    """Couples (columns of p) with the latents (rows) under which they are trained on; each couple is chosen once.

    A latent gives at most ``quota`` labels.
    """
    sure, side = (p - 0.5).abs(), p > 0.5
    free, begun = torch.ones(len(prompt), dtype=torch.bool), torch.zeros(len(p), max(prompt) + 1)
    given, at, limit = torch.zeros(len(p)), torch.tensor(prompt), 1
    rows: list[tuple[int, int]] = []
    while free.any() and (given < quota).any():
        before = len(rows)
        for k in range(len(p)):
            contradicts = (side != side[k]) & (given < quota).unsqueeze(1)
            other, partner = sure.masked_fill(~contradicts, -1.0).max(0)
            value = torch.where(other < 0, sure[k] - 1, torch.minimum(sure[k], other))
            value = value.masked_fill(~free | (begun[k, at] >= limit), -2.0)
            column = int(value.argmax())
            if given[k] >= quota or value[column] == -2:
                continue
            free[column] = False
            begun[k, prompt[column]] += 1
            for latent in [k] if other[column] < 0 else [k, int(partner[column])]:
                given[latent] += 1
                rows.append((column, latent))
        limit += len(rows) == before
    return rows


def _conflict(p: Tensor) -> Tensor:
    """(latents, latents) share of the couples (columns) on which two latents (rows) disagree."""
    sign = (p > 0.5).double()
    n = p.shape[1]
    return (sign @ (1 - sign).T + (1 - sign) @ sign.T) / n
