"""FedPDPO (Zhu et al. 2026, 2603.19741) at head level: a shared representation, and a head of its own per client.

The feature map is averaged; each client's head v_i in p(a > b | x) = sigmoid(alpha l0 + <v_i, d> / sqrt(h)) is private
and never uploaded. So the server has no head to give to a new user: its head is fitted to its context pairs on the
shared representation, as `local` does on the backbone's features, with the decay chosen on validation clients for each
number of pairs. Without a context the head is 0 (a coin, but for l0); a mean head would need what is private.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedvpa.methods.base import (
    ClientBatch,
    Context,
    Download,
    LocalNoise,
    Pool,
    Private,
    ServerState,
    Upload,
    stack_theta,
)
from fedvpa.methods.fedbt import FedBT
from fedvpa.methods.local import LocalPredictor
from fedvpa.preferences.schema import Client
from fedvpa.variational.selector import Theta, embed

HEAD = "selector.common"


class FedPDPO(FedBT):
    """Inference `none`; a context fits a head."""

    name: ClassVar[str] = "fedpdpo"
    portable: ClassVar[bool] = False
    contextual: ClassVar[bool] = True

    def init_server(self, generator: torch.Generator) -> ServerState:
        state = super().init_server(generator)
        return replace(state, theta={k: v for k, v in state.theta.items() if k != HEAD})

    def init_client(self, count: int) -> Private:
        """(clients, h) heads, zero at the start."""
        return {HEAD: torch.zeros(count, self.sizes.hidden, dtype=self.setup.dtype)}

    def client_update(
        self, download: Download, private: Private, batch: ClientBatch, noise: LocalNoise
    ) -> tuple[Upload, Private]:
        """Trains the representation and the own head together; only the representation leaves."""
        theta = stack_theta(download.theta, len(batch.ids))
        head = {k: v.clone().requires_grad_(True) for k, v in private.items()}
        loss = self.train_locally(theta, batch, noise, download.round, head, self.config.method.head_learning_rate)
        return self.upload(theta, batch, loss), {k: v.detach() for k, v in head.items()}

    def predictor(self, state: ServerState, pool: Pool) -> HeadPredictor:
        return HeadPredictor(state.theta, pool, self.setup.validation, self.config.seed)


class HeadPredictor(LocalPredictor):
    """A user is a head (h,) on the shared representation, followed by the weight of l0 where there is one.

    The pool that heads are fitted on has the pair's difference embedding d (and l0) as its first "response" and 0 as
    its second, so that a head's score is <v, d> + weight * l0.
    """

    @torch.no_grad()
    def __init__(self, theta: Theta, pool: Pool, validation: tuple[Client, ...], seed: int) -> None:
        d = pool.differences(partial(embed, theta))
        self.alpha = d.new_zeros(0)
        if pool.base_logit is not None:
            d, self.alpha = torch.cat([d, pool.base_logit.unsqueeze(-1)], -1), theta["selector.alpha"].reshape(1)
        super().__init__(Pool.of_pairs(torch.stack([d, torch.zeros_like(d)], 1)), validation, seed)
        self.nobody = torch.cat([d.new_zeros(d.shape[-1] - len(self.alpha)), self.alpha])

    def own(self, private: Private, ids: Tensor) -> OwnHeads:
        """The same for the training clients `ids` (users,), each with the head that it trained."""
        heads = private[HEAD][ids]
        return OwnHeads(self, torch.cat([heads / math.sqrt(heads.shape[-1]), self.alpha.expand(len(ids), -1)], -1))


class OwnHeads:
    """Training clients under the heads that they trained (users, h); a context tells nothing more about them."""

    inferences: tuple[str, ...] = ("none",)

    def __init__(self, predictor: HeadPredictor, heads: Tensor) -> None:
        self.predict, self.rows, self.heads = predictor.predict, predictor.rows, heads

    def infer(self, context: Context, how: str = "none", groups: Tensor | None = None) -> Any:
        return self.heads
