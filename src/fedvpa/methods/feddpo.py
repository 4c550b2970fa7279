"""FedDPO: DPO (Rafailov et al. 2023, 2305.18290) with LoRA at each client, FedAvg of the adapters.

As in OpenFedLLM (Ye et al. 2024, 2402.06954), whose DPO script's settings are the defaults of the section `lora`:
rank 8, alpha 16, 10 local AdamW steps of 16 pairs, a learning rate that falls along a cosine from 5e-4 to 1e-5 over
the rounds, beta 0.1, averages weighted by the clients' numbers of pairs. The reference is the frozen model.

The policy is its own reward model: log p(a > b) / p(b > a) is the margin of the implicit rewards. There is no latent,
so it predicts the same for everybody.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedvpa.backbone.adapters import Adapter
from fedvpa.backbone.pairs import Form, PairTexts
from fedvpa.methods.language import LanguageModelTraining


class FedDPO(LanguageModelTraining):
    """One policy for everybody; inference `none`."""

    name: ClassVar[str] = "feddpo"
    form: ClassVar[Form] = "responses"

    def logits(self, adapter: Adapter, pairs: PairTexts) -> Tensor:
        """beta ((log pi(a|x) - log pi_ref(a|x)) - (log pi(b|x) - log pi_ref(b|x))), (pairs,); the inside of Eq. 7."""
        policy = self.lm.log_probs(pairs.texts, adapter).reshape(-1, 2)
        ratio = policy - self.lm.reference(pairs).to(policy)
        return self.config.lora.beta * (ratio[:, 0] - ratio[:, 1])

    def foresee(self, pairs: PairTexts) -> None:
        self.lm.reference(pairs)
