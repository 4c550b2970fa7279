"""Log-probabilities of whole responses, log pi(r | x), and those of the frozen model, cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedvpa.backbone.extract import Item
from fedvpa.backbone.forward import FrozenLM
from fedvpa.backbone.packing import Batch
from fedvpa.backbone.tokens import Text

ROWS = 256  # of one tile: fewer pack the weights more often, more fall out of the cache


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


def log_probs(lm: FrozenLM, hidden: Tensor, batch: Batch) -> Tensor:
    """log pi(r | x) of each span, the sum over its tokens of log pi(token | everything before it).

    A span's first token is predicted by the last one of its prompt, wherever in the row that stands.

    Args:
        hidden: (rows, length, D) final states of the batch.

    Returns:
        (spans,) float32
    """
    rows: list[int] = []
    before: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    positions = None if batch.position_ids is None else batch.position_ids.cpu()
    for owner, (_, row, start, stop) in enumerate(batch.spans):
        last = start if positions is None else int(positions[row, start])
        before += [last - 1, *range(start, stop - 1)]
        targets += range(start, stop)
        rows += [row] * (stop - start)
        owners += [owner] * (stop - start)
    place = torch.tensor([rows, before, targets, owners], device=hidden.device)
    states, wanted = hidden[place[0], place[1]], batch.input_ids[place[0], place[2]]
    if lm.plain_head:
        assert lm.head is not None
        each = CompletionLogProbs.apply(states.float(), lm.head.weight.float(), wanted)
    else:
        each = -functional.cross_entropy(lm.logits(states), wanted, reduction="none")
    return states.new_zeros(len(batch.spans), dtype=torch.float32).index_add(0, place[3], each)


@dataclass(frozen=True)
class LogProbExtractor:
    """log pi(r | x) of the frozen model; an `Item` holds one response, the end-of-sequence token is part of it."""

    load: Callable[[frozenset[int | None]], FrozenLM]
    max_tokens: int
    base_identity: Mapping[str, Any]
    label: str = "log-probabilities"
    dim: int = 1
    layer: None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**self.base_identity, "kind": "log-probability of the response and its end; prompt at most half"}

    def texts(self, lm: FrozenLM, items: Sequence[Item]) -> list[Text]:
        return lm.renderer.completions([(i.prompt, i.responses[0]) for i in items], self.max_tokens)

    @torch.inference_mode()
    def vectors(self, lm: FrozenLM, hidden: Tensor, batch: Batch) -> Tensor:
        """(spans, 1)"""
        return log_probs(lm, hidden, batch).unsqueeze(-1)
