"""FedBT: FedAvg of one Bradley-Terry selector without z, the monolithic reward model (FedBis at head level)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedvpa.methods.base import (
    ClientBatch,
    Context,
    Download,
    LocalNoise,
    NoiseSpec,
    Pool,
    Predictor,
    Private,
    ServerState,
    Setup,
    Upload,
    descend,
    drop_features,
    local_optimizer,
    stack_theta,
)
from fedvpa.variational.objective import bradley_terry
from fedvpa.variational.selector import Sizes, Theta, difference, embed, init_theta, score


class FedBT:
    """One selector for everybody; inference `none`."""

    name: ClassVar[str] = "fedbt"
    federated: ClassVar[bool] = True
    latent: ClassVar[bool] = False
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "reconstruction")

    def __init__(self, setup: Setup) -> None:
        self.setup, self.config = setup, setup.config
        self.sizes = Sizes(setup.features, setup.config.model.hidden_dim, 0, 0)

    def init_server(self, generator: torch.Generator) -> ServerState:
        n, dtype = self.setup.clients, self.setup.dtype
        none = torch.zeros(n, 0, dtype=dtype)
        return ServerState(
            round=0,
            theta={k: v.to(dtype) for k, v in self.initial(generator).items()},
            means=none,
            variances=none,
            counts=torch.zeros(n, dtype=torch.int64),
            labels=torch.full((n,), -1),
            centroids=none[:0],
            spread=none[:0],
            shares=none.new_zeros(0),
        )

    def initial(self, generator: torch.Generator) -> Theta:
        """One model's parameters before training."""
        return init_theta(self.sizes, generator)

    def init_client(self, count: int) -> Private:
        return {}

    def noise_spec(self) -> NoiseSpec:
        f = self.config.federation
        return NoiseSpec(f.local_steps, 1, False, 0, 0, 0, self.sizes.features, self.config.model.feature_dropout)

    def broadcast(self, state: ServerState) -> Download:
        return Download(
            state.round,
            state.theta,
            state.means,
            state.variances,
            state.counts,
            state.labels,
            state.shares,
            False,
            False,
        )

    def download_bytes(self, download: Download) -> int:
        return sum(t.numel() * t.element_size() for t in download.theta.values())

    def client_update(
        self, download: Download, private: Private, batch: ClientBatch, noise: LocalNoise
    ) -> tuple[Upload, Private]:
        theta = stack_theta(download.theta, len(batch.ids))
        return self.upload(theta, batch, self.train_locally(theta, batch, noise, download.round)), private

    def train_locally(
        self,
        theta: Theta,
        batch: ClientBatch,
        noise: LocalNoise,
        round: int,
        private: Private | None = None,
        rate: float = 0.0,
    ) -> Tensor:
        """`local_steps` steps on the Bradley-Terry likelihood of all pairs, or of random `batch_pairs`, in place.

        Args:
            theta: (K, ...) each, trainable.
            round: the round, from 0.
            private: parameters by name that stay at the client, (K, ...) each, trainable; `rate` is SGD's for them.

        Returns:
            (K,) the last step's loss.
        """
        f, mine = self.config.federation, private or {}
        optimizer = local_optimizer(theta, self.config, mine, rate)
        for step in range(f.local_steps):
            part = batch
            if f.batch_pairs < batch.y.shape[1]:
                part = batch.take(noise.rank[:, step].argsort(-1)[:, : f.batch_pairs])
            part = drop_features(part, noise.keep[:, step])
            loss = bradley_terry({**theta, **mine}, difference(theta, part.x), part.base_logit, part.y, part.mask)
            descend(loss, optimizer)
        return loss.detach()

    def upload(self, theta: Theta, batch: ClientBatch, loss: Tensor, model: Tensor | None = None) -> Upload:
        none = batch.y.new_zeros(len(batch.ids), 0)
        metrics = {"loss": loss, "reconstruction": loss}
        trained = {k: v.detach() for k, v in theta.items()}
        return Upload(batch.ids, trained, none, none, batch.counts, metrics, model)

    def server_update(
        self, state: ServerState, upload: Upload, theta: Theta, generator: torch.Generator
    ) -> ServerState:
        return state.advance(theta=theta)

    def predictor(self, state: ServerState, pool: Pool) -> Predictor:
        return CommonPredictor(state.theta, pool)


class CommonPredictor:
    """The same prediction for everybody. A user is nothing but a row."""

    inferences: tuple[str, ...] = ("none",)

    @torch.no_grad()
    def __init__(self, theta: Theta, pool: Pool) -> None:
        d = pool.differences(partial(embed, theta))
        self.p = torch.sigmoid(score(theta, d, None, pool.base_logit))

    def infer(self, context: Context, how: str = "none", groups: Tensor | None = None) -> Any:
        return context.y.new_zeros(len(context.y), 0)

    def predict(self, users: Any, index: Tensor) -> Tensor:
        return self.p[index]

    def rows(self, users: Any, order: Tensor) -> Any:
        return users[order]
