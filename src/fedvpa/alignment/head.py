"""Log-probabilities of the responses' tokens on a CPU, in the place of TRL's head while its trainer runs there.

Without Triton TRL's head projects every position, the prompt's too, and makes several passes over float32 logits for
metrics that nobody reads here: half of a step of a small model. This one projects the responses' positions only and
keeps a tile in the processor's cache. The numbers are the same; entropy, mean logit and top-1 are left out (zero).
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

ROWS = 256  # of one tile: fewer pack the weights more often, more fall out of the cache
_OTHER_LOGITS = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
    "output_router_logits",
)


class CompletionLogProbs(torch.autograd.Function):
    """log softmax(hidden weight^T) at the targets, without keeping logits: the backward pass computes them again.

    Args of ``apply``: hidden (n, H), weight (V, H) frozen, targets (n,). Returns (n,) float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        log_z, found = (torch.empty(len(hidden), device=hidden.device) for _ in range(2))
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, start + ROWS)
            logits = (hidden[rows] @ weight.T).float()
            found[rows] = logits.gather(1, targets[rows, None]).squeeze(1)
            top = logits.amax(1, keepdim=True)
            log_z[rows] = logits.sub_(top).exp_().sum(1).log_() + top.squeeze(1)
        ctx.save_for_backward(hidden, weight, targets, log_z)
        return found - log_z

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        hidden, weight, targets, log_z = ctx.saved_tensors
        out = torch.empty_like(hidden)
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, start + ROWS)
            p = (hidden[rows] @ weight.T).float().sub_(log_z[rows, None]).exp_()
            p.mul_(-gradient[rows, None])
            p.scatter_add_(1, targets[rows, None], gradient[rows, None].to(p.dtype))
            out[rows] = p.to(weight.dtype) @ weight
        return out, None, None


@contextlib.contextmanager
def cpu_head(lm: Any) -> Iterator[None]:
    """While open, a trainer that TRL makes for this model gets the head of this module, where that fits the model.

    It does on a CPU, for plain logits and a frozen output layer without bias; elsewhere TRL's own is better or needed.
    """
    config, output = lm.config.get_text_config(), lm.get_output_embeddings()
    plain = not any(getattr(config, name, None) for name in _OTHER_LOGITS)
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
