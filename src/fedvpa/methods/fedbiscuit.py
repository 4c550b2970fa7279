"""FedBiscuit (Wu et al. 2025, 2407.03038) at head level: U selectors, balanced groups of clients, majority vote.

As in the paper and its authors' code: first the selectors are warmed up one after another, each by whoever is sampled.
Then, every `method.regroup_every` rounds, *every* client measures all U selectors on pairs that it holds out and
reports the U losses; the server assigns clients to selectors at the least total loss in groups of equal size, and a
sampled client trains its group's selector only. Each selector has its own server optimiser. Nobody chooses a selector
at inference: all U vote, for everybody alike.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from fedvpa.methods.base import ClientBatch, Download, LocalNoise, Pool, Predictor, Private, ServerState, Setup, Upload
from fedvpa.methods.clustering import assign, size_bounds
from fedvpa.methods.fedbt import CommonPredictor, FedBT
from fedvpa.variational.objective import bradley_terry
from fedvpa.variational.selector import Theta, difference, embed, score


class FedBiscuit(FedBT):
    """The server's theta holds selector k as ``k/NAME``; a client's group is its entry of `ServerState.labels`."""

    name: ClassVar[str] = "fedbiscuit"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.m = setup.config.method
        self.models = self.m.selectors
        share = self.m.selector_warmup
        self.warmup = max(1, round(share * self.config.federation.rounds)) if share > 0 else 0

    # Server --------------------------------------------------------------------------------------------------------

    def init_server(self, generator: torch.Generator) -> ServerState:
        """U selectors from U different draws; no client belongs to a group yet."""
        each = [self.initial(generator) for _ in range(self.models)]
        theta = {f"{k}/{n}": v.to(self.setup.dtype) for k, own in enumerate(each) for n, v in own.items()}
        return replace(super().init_server(generator), theta=theta)

    def surveys(self, round: int) -> bool:
        """Whether clients are grouped anew before this round."""
        after = round - self.models * self.warmup
        return after >= 0 and after % self.m.regroup_every == 0

    def regroup(self, state: ServerState, reports: Tensor) -> ServerState:
        """Groups of equal size (up to one) at the least total loss. reports: (clients, U)."""
        cost = reports.double().cpu().numpy()
        labels = assign(cost, *size_bounds(len(cost), self.models, "equal"))
        return replace(state, labels=torch.from_numpy(labels))

    def download_bytes(self, download: Download) -> int:
        """One selector and the group; in a round with a survey, and as the figure after the last round, all U."""
        size = super().download_bytes(download)
        whole = self.surveys(download.round) or download.round >= self.config.federation.rounds
        return 8 + (size if whole else size // self.models)

    # Client --------------------------------------------------------------------------------------------------------

    def held_out(self, batch: ClientBatch) -> Tensor:
        """(K, pairs) the pairs on which a client measures selectors and never trains: its last ones, a fixed share."""
        held = (self.m.selector_holdout * batch.counts).floor().unsqueeze(-1)
        return batch.mask & (torch.arange(batch.y.shape[1]) >= batch.counts.unsqueeze(-1) - held)

    @torch.no_grad()
    def client_report(self, download: Download, batch: ClientBatch) -> Tensor:
        """(K, U) each selector's loss on the held-out pairs; on all pairs of a client that holds out none."""
        held = self.held_out(batch)
        mask = torch.where(held.any(-1, keepdim=True), held, batch.mask)
        return torch.stack([self._loss(t, batch, mask) for t in self.selectors(download.theta)], -1)

    def _loss(self, theta: Theta, batch: ClientBatch, mask: Tensor) -> Tensor:
        return bradley_terry(theta, difference(theta, batch.x), batch.base_logit, batch.y, mask)

    def selectors(self, theta: Theta) -> list[Theta]:
        """The U selectors' parameters, ``NAME`` each."""
        names = [k.removeprefix("0/") for k in theta if k.startswith("0/")]
        return [{n: theta[f"{k}/{n}"] for n in names} for k in range(self.models)]

    def client_update(
        self, download: Download, private: Private, batch: ClientBatch, noise: LocalNoise
    ) -> tuple[Upload, Private]:
        """Trains one selector: in the warm-up the one whose turn it is, then the group's."""
        if download.round < self.models * self.warmup:
            model = torch.full_like(batch.ids, download.round // self.warmup)
        else:
            model = download.labels[batch.ids]
        each = self.selectors(download.theta)
        theta = {n: torch.stack([t[n] for t in each])[model].clone().requires_grad_(True) for n in each[0]}
        batch = batch._replace(mask=batch.mask & ~self.held_out(batch))
        return self.upload(theta, batch, self.train_locally(theta, batch, noise, download.round), model), private

    def predictor(self, state: ServerState, pool: Pool) -> Predictor:
        return VotePredictor(self.selectors(state.theta), pool)


class VotePredictor(CommonPredictor):
    """The majority of U selectors decides.

    The paper's vote has no probability. p(a > b) is the share of votes for a, with the selectors' mean probability as
    one vote more (`majority`): it decides ties, cannot overrule a majority, and keeps the log-loss finite.
    """

    @torch.no_grad()
    def __init__(self, selectors: list[Theta], pool: Pool) -> None:
        differences = [pool.differences(partial(embed, t)) for t in selectors]
        each = [torch.sigmoid(score(t, d, None, pool.base_logit)) for t, d in zip(selectors, differences, strict=True)]
        self.p = majority(torch.stack(each))


def majority(each: Tensor) -> Tensor:
    """p(a > b) (pairs,) by vote, from each selector's (U, pairs)."""
    votes = torch.where(each == 0.5, 0.5, (each > 0.5).to(each.dtype)).sum(0)
    return (votes + each.mean(0)) / (len(each) + 1)
