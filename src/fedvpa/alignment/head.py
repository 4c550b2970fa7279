"""Log-probabilities of the responses' tokens on a CPU, in the place of TRL's head while its trainer runs there.

Without Triton TRL's head projects every position, the prompt's too, and makes several passes over float32 logits for
metrics that nobody reads here: half of a step of a small model. This one projects the responses' positions only
(`backbone.logprobs.CompletionLogProbs`). The numbers are the same; entropy, mean logit and top-1 are left out (zero).
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
import trl.trainer.dpo_trainer as trl_dpo
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from fedvpa.backbone.forward import OTHER_LOGITS
from fedvpa.backbone.logprobs import CompletionLogProbs


@contextlib.contextmanager
def cpu_head(lm: Any) -> Iterator[None]:
    """While open, a trainer that TRL makes for this model gets the head of this module, where that fits the model.

    It does on a CPU, for plain logits and a frozen output layer without bias; elsewhere TRL's own is better or needed.
    """
    config, output = lm.config.get_text_config(), lm.get_output_embeddings()
    plain = not any(getattr(config, name, None) for name in OTHER_LOGITS)
    if lm.device.type != "cpu" or not plain or output.bias is not None or output.weight.requires_grad:
        yield
        return
    before = trl_dpo.add_fused_lm_head
    trl_dpo.add_fused_lm_head = _add
    try:
        yield
    finally:
        trl_dpo.add_fused_lm_head = before


def _add(model: Any, **_: Any) -> None:
    """As TRL's `add_fused_lm_head`: with ``fused_lm_head=True`` the forward pass returns log-probabilities."""
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return original(*args, labels=labels, **kwargs) if labels is not None else original(*args, **kwargs)
        assert labels is not None
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        wanted = labels[:, 1:] != -100
        found = CompletionLogProbs.apply(hidden[wanted], self.get_output_embeddings().weight, labels[:, 1:][wanted])
        log_probs = found.new_zeros(wanted.shape).masked_scatter(wanted, found)
        nothing = torch.zeros_like(log_probs, requires_grad=False).detach()
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / wanted.sum().clamp(min=1),
            log_probs=log_probs,
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
        )

    model.forward = types.MethodType(forward, model)
