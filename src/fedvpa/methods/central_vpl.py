"""Central VPL: all users' pairs in one place, one theta trained jointly (Poddar et al. 2024). An upper reference."""

from __future__ import annotations

from typing import ClassVar

import torch

from fedvpa.methods.base import (
    ClientBatch,
    Download,
    LocalNoise,
    Private,
    Upload,
    descend,
    drop_features,
    local_optimizer,
)
from fedvpa.methods.fedvpl import FedVPL
from fedvpa.preferences.seeding import generator
from fedvpa.variational.selector import Theta


class CentralVPL(FedVPL):
    """A "round" is `local_steps` joint steps, each on `sampled_clients` users; nothing is federated.

    The engine hands over every client at once (`joint`); the server steps on their common change as in every method.
    """

    name: ClassVar[str] = "central-vpl"
    federated: ClassVar[bool] = False
    joint: ClassVar[bool] = True

    def client_update(
        self, download: Download, private: Private, batch: ClientBatch, noise: LocalNoise
    ) -> tuple[Upload, Private]:
        with torch.no_grad():
            means, variances = self.statistics(download.theta, batch, noise.subset)
        theta: Theta = {k: v.clone().requires_grad_(True) for k, v in download.theta.items()}
        optimizer = local_optimizer(theta, self.config)
        clients, width = len(batch.ids), min(self.f.sampled_clients, len(batch.ids))
        order = torch.cat(
            [
                torch.randperm(clients, generator=generator(self.config.seed, "central", download.round, sweep))
                for sweep in range(-(-self.f.local_steps * width // clients))
            ]
        )
        size = torch.minimum(noise.context_size, (batch.counts - 1).clamp(min=0).unsqueeze(-1))
        for step in range(self.f.local_steps):
            users = order[step * width : (step + 1) * width]
            base = None if batch.base_logit is None else batch.base_logit[users]
            part = ClientBatch(batch.ids[users], batch.x[users], base, batch.y[users], batch.mask[users])
            part = drop_features(part, noise.keep[users, step])
            context = (noise.rank[users, step] < size[users, step].unsqueeze(-1)) & part.mask
            terms, _ = self.terms(
                theta, {}, part, context, noise.normal[users, step], noise.gumbel[users, step], download
            )
            loss = terms.total(self.beta(download), self.m.lambda_, self.m.mixture_loss, self.m.cluster_loss).mean()
            descend(loss, optimizer)
        metrics = {"loss": loss.detach(), **{k: v.detach().mean() for k, v in terms._asdict().items()}}
        return Upload(
            batch.ids,
            {k: v.detach().expand(clients, *v.shape) for k, v in theta.items()},
            means,
            variances,
            batch.counts,
            {k: v.expand(clients) for k, v in metrics.items()},
        ), private
