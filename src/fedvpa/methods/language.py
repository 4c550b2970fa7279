"""What the methods share that train the language model itself: theta is one LoRA adapter.

Everything around them is as for a selector: the sampled clients, the local steps' random pairs, the average, the
server's optimiser, privacy, checkpoints and messages see named tensors. A client's batch is a stack of one, since a
step fills the processor by itself. The language model stays where it is (`backbone.adapters`), a client's adapter is
lent to it for each forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fedvpa.backbone.adapters import AdaptedLM, Adapter, adapted
from fedvpa.backbone.pairs import Form, PairTexts
from fedvpa.config import ExperimentConfig
from fedvpa.methods.base import (
    ClientBatch,
    LocalNoise,
    NoiseSpec,
    Pool,
    Predictor,
    Private,
    ServerState,
    local_optimizer,
)
from fedvpa.methods.fedbt import CommonPredictor, FedBT
from fedvpa.preferences.seeding import derive_seed
from fedvpa.variational.selector import Theta


class LanguageModelTraining(FedBT):
    """FedAvg of LoRA adapters by some logit of a pair; subclasses say which (`logits`) and on which tokens (`form`).

    The configuration is that of `ExperimentConfig.for_method`.
    """

    form: ClassVar[Form]
    portable: ClassVar[bool] = False

    @property
    def lm(self) -> AdaptedLM:
        return adapted(self.config)

    def initial(self, generator: torch.Generator) -> Theta:
        return self.lm.start(generator)

    def noise_spec(self) -> NoiseSpec:
        """One normal number per pair of a step, for whatever a form draws per pair."""
        f = self.config.federation
        return NoiseSpec(f.local_steps, 1, False, 1, f.batch_pairs, 0, 0, 0.0)

    def logits(self, adapter: Adapter, pairs: PairTexts) -> Tensor:
        """log p(a > b) / p(b > a) (pairs,) under an adapter; antisymmetric in a and b."""
        raise NotImplementedError

    def training_logits(self, adapter: Adapter, pairs: PairTexts, normal: Tensor) -> Tensor:
        """The same in a local step, where a form may be cheaper. normal: (pairs,) random numbers."""
        return self.logits(adapter, pairs)

    def foresee(self, pairs: PairTexts) -> None:
        """Computes what `logits` will need of the frozen model, in batches of its own."""

    def train_locally(
        self,
        theta: Theta,
        batch: ClientBatch,
        noise: LocalNoise,
        round: int,
        private: Private | None = None,
        rate: float = 0.0,
    ) -> Tensor:
        """`local_steps` steps on random `batch_pairs` of one client's pairs, in place; (1,) the last step's loss."""
        (client,) = batch.ids.tolist()
        f, texts = self.config.federation, _texts(batch)
        self.foresee(texts.take(batch.mask[0].nonzero().flatten()))
        optimizer = local_optimizer(theta, self.config)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.config, round)
        with self.lm.dropout(derive_seed(self.config.seed, "adapter dropout", round, client)):
            for step in range(f.local_steps):
                order = noise.rank[0, step].argsort()
                order = order[batch.mask[0, order]][: f.batch_pairs]
                optimizer.zero_grad()
                loss = self._backward(theta, texts.take(order), batch.y[0, order], noise.normal[0, step, 0])
                if self.config.lora.gradient_norm:
                    torch.nn.utils.clip_grad_norm_(list(theta.values()), self.config.lora.gradient_norm)
                optimizer.step()
        return loss.to(batch.y).reshape(1)

    def _backward(self, theta: Theta, pairs: PairTexts, y: Tensor, normal: Tensor) -> Tensor:
        """Accumulates the gradient of -mean log p(y) over the pairs, in batches that fit into memory; the loss."""
        total = torch.zeros(())
        for part in pairs.batches(self.lm.batch_tokens):
            adapter = {k: v[0] for k, v in theta.items()}
            s = self.training_logits(adapter, pairs.take(part), normal[part])
            loss = -functional.logsigmoid(y[part].to(s) * s).sum() / len(pairs)
            loss.backward()
            total = total + loss.detach().cpu()
        return total

    @torch.no_grad()
    def all_logits(self, adapter: Adapter, pairs: PairTexts) -> Tensor:
        """`logits` of any number of pairs, on the CPU, without a gradient."""
        self.foresee(pairs)
        found = torch.zeros(len(pairs))
        for part in pairs.batches(self.lm.batch_tokens):
            found[part] = self.logits(adapter, pairs.take(part)).cpu()
        return found.to(self.setup.dtype)

    def predictor(self, state: ServerState, pool: Pool) -> Predictor:
        return self.asked(pool, lambda pairs: torch.sigmoid(self.all_logits(state.theta, pairs)))

    def asked(self, pool: Pool, probability: Callable[[PairTexts], Tensor]) -> AskedPredictor:
        """A predictor over the pool by p(a > b) of some of its pairs."""
        assert pool.texts is not None
        return AskedPredictor(pool.texts, probability, self.setup.dtype)


class AskedPredictor(CommonPredictor):
    """The same prediction for everybody, computed when a pair is first asked about: most of a pool never is."""

    def __init__(
        self, texts: PairTexts, probability: Callable[[PairTexts], Tensor], dtype: torch.dtype = torch.float32
    ) -> None:
        self.texts, self.probability = texts, probability
        self.p = torch.full((len(texts),), torch.nan, dtype=dtype)

    def predict(self, users: Any, index: Tensor) -> Tensor:
        rows = index.unique()
        new = rows[self.p[rows].isnan()]
        if len(new):
            self.p[new] = self.probability(self.texts.take(new))
        return self.p[index]


def learning_rate(config: ExperimentConfig, round: int) -> float:
    """A round's local learning rate, which falls along a cosine from the first to the last (OpenFedLLM)."""
    first, last = config.federation.learning_rate, config.lora.final_learning_rate or 0.0
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * round / config.federation.rounds))


def _texts(batch: ClientBatch) -> PairTexts:
    """The pairs of a stack of one, in its order, padding included."""
    assert batch.texts is not None
    assert batch.rows is not None
    return batch.texts.take(batch.rows[0])
