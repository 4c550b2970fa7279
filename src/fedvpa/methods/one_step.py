"""Methods whose clients send one gradient step of theta in a round: a common frame.

It is FedAvg with one local step of gradient descent (FedSGD of McMahan et al. 2017, 1602.05629) under the server's
optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fedvpa.methods.base import Download, JudgementBatch, LocalNoise, NoiseSpec, Private, ServerState, Upload
from fedvpa.methods.fedbt import FedBT
from fedvpa.variational.selector import Theta


class OneStep(FedBT):
    """Rounds of such a method; a subclass says `initial`, `losses` and `predictor`."""

    portable: ClassVar[bool] = False
    contextual: ClassVar[bool] = True
    metric_names: ClassVar[tuple[str, ...]] = ("loss",)
    rate: ClassVar[float] = 1.0
    """Factor of `federation.server_learning_rate`, chosen on validation people."""
    dropout: ClassVar[float] = 0.5
    """Share of the input features left out in a round, chosen on validation people."""

    def losses(self, theta: Theta, batch: JudgementBatch, round: int) -> Tensor:
        """(K,) what each client descends on, the mean over its judgements."""
        raise NotImplementedError

    def sums_shapes(self, download: Download) -> Mapping[str, tuple[int, ...]]:
        return {}

    def pace(self, state: ServerState) -> float:
        return self.rate

    def noise_spec(self) -> NoiseSpec:
        return NoiseSpec(1, 1, False, 0, 0, 0, 0, 0.0, subsets=0)

    def cohort_update(self, download: Download, batch: JudgementBatch, noise: LocalNoise) -> Upload:
        """The batch's clients as one: theta - d loss / d theta, of their mean weighted by numbers of judgements."""
        theta = {k: v.clone().requires_grad_(True) for k, v in download.theta.items()}
        loss, total = self.losses(theta, batch, download.round), batch.counts.sum()
        gradients = torch.autograd.grad((batch.counts / total * loss).sum(), list(theta.values()))
        stepped = {k: (v - g).detach().unsqueeze(0) for (k, v), g in zip(theta.items(), gradients, strict=True)}
        none, loss = loss.new_zeros(1, 0), loss.detach()
        return Upload(batch.ids[:1], stepped, none, none, total.unsqueeze(0), {"loss": loss.mean().unsqueeze(0)})

    def client_update(  # type: ignore[override]  # a `Judging` method gets judgements
        self, download: Download, private: Private, batch: JudgementBatch, noise: LocalNoise
    ) -> tuple[Upload, Private]:
        each = [self.cohort_update(download, batch.client(i), noise) for i in range(len(batch.ids))]
        theta = {k: torch.cat([u.theta[k] for u in each]) for k in download.theta}
        metrics = {k: torch.cat([u.metrics[k] for u in each]) for k in self.metric_names}
        none = batch.y.new_zeros(len(each), 0)
        return Upload(batch.ids, theta, none, none, batch.counts, metrics), private
