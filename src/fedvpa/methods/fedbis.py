"""FedBis and FedBiscuit as in the paper (Wu et al. 2025, 2407.03038): LoRA on the language model, which is asked.

A choice prompt shows both responses as A and B; l(a, b) is the logit of the answer "A" minus that of "B" with a shown
as A (`backbone.choice`, Eq. 2 of method.md). A local step shows each pair in one random order and takes the
cross-entropy of the two answers, -log sigmoid(y l(a, b)) or -log sigmoid(-y l(b, a)). Predictions take both orders,
(l(a, b) - l(b, a)) / 2, so that they are antisymmetric whatever the model thinks of the letter A (ours; the paper
relies on the random order). Defaults of the section `lora` are those of the authors' TL;DR script: rank 8, alpha 16,
30 local AdamW steps of 2 x 2 pairs at 1e-5. Unlike theirs, averages are weighted by numbers of pairs, as everywhere
here, and AdamW's second beta is 0.999, not 0.95.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fedvpa.backbone.adapters import Adapter
from fedvpa.backbone.pairs import Form, PairTexts
from fedvpa.methods.base import ClientBatch, Pool, Predictor, ServerState
from fedvpa.methods.fedbiscuit import FedBiscuit, majority
from fedvpa.methods.language import LanguageModelTraining
from fedvpa.variational.selector import Theta


class FedBis(LanguageModelTraining):
    """`fedbt` with `backbone.train: lora`."""

    name: ClassVar[str] = "fedbt"
    form: ClassVar[Form] = "choice"

    def logits(self, adapter: Adapter, pairs: PairTexts) -> Tensor:
        shown = self.lm.answers(pairs.texts, adapter).reshape(-1, 2)
        return (shown[:, 0] - shown[:, 1]) / 2

    def training_logits(self, adapter: Adapter, pairs: PairTexts, normal: Tensor) -> Tensor:
        """Each pair in one order: a first where its random number is positive."""
        second = (normal <= 0).long()
        shown = [pairs.texts[2 * i + k] for i, k in enumerate(second.tolist())]
        answers = self.lm.answers(shown, adapter)
        return answers * (1 - 2 * second.to(answers))


class FedBiscuitLoRA(FedBis, FedBiscuit):
    """`fedbiscuit` with `backbone.train: lora`: U adapters; grouping, warm-up and vote are `FedBiscuit`'s."""

    name: ClassVar[str] = "fedbiscuit"

    def _loss(self, theta: Theta, batch: ClientBatch, mask: Tensor) -> Tensor:
        """(1,) mean loss over the pairs that the mask (1, pairs) marks, in both orders."""
        assert batch.texts is not None
        assert batch.rows is not None
        s = self.all_logits(theta, batch.texts.take(batch.rows[mask]))
        return -functional.logsigmoid(batch.y[mask] * s).mean().reshape(1)

    def predictor(self, state: ServerState, pool: Pool) -> Predictor:
        def vote(pairs: PairTexts) -> Tensor:
            each = [self.all_logits(t, pairs) for t in self.selectors(state.theta)]
            return majority(torch.sigmoid(torch.stack(each)))

        return self.asked(pool, vote)
