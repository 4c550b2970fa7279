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

_AT_ONCE = 1024
"""Tokens whose logits over the whole vocabulary are held at a time."""


def log_probs(lm: FrozenLM, hidden: Tensor, batch: Batch) -> Tensor:
    """log pi(r | x) of each span, the sum over its tokens of log pi(token | everything before it).

    A span's first token is predicted by the last one of its prompt, wherever in the row that stands. Where nothing is
    left of the prompt, the first token is taken as given.

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
        places = [last - 1, *range(start, stop - 1)]
        skip = 1 if last == 0 else 0
        rows += [row] * (len(places) - skip)
        before += places[skip:]
        targets += range(start + skip, stop)
        owners += [owner] * (len(places) - skip)
    place = torch.tensor([rows, before, targets, owners], device=hidden.device)
    states, wanted = hidden[place[0], place[1]], batch.input_ids[place[0], place[2]]
    parts = [
        -functional.cross_entropy(lm.logits(s), w, reduction="none")
        for s, w in zip(states.split(_AT_ONCE), wanted.split(_AT_ONCE), strict=True)
    ]
    return states.new_zeros(len(batch.spans), dtype=torch.float32).index_add(0, place[3], torch.cat(parts))


@dataclass(frozen=True)
class LogProbExtractor:
    """log pi(r | x) of the frozen model; an `Item` holds one response, the end-of-sequence token is part of it."""

    load: Callable[[], FrozenLM]
    max_tokens: int
    base_identity: Mapping[str, Any]
    label: str = "log-probabilities"
    dim: int = 1

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**self.base_identity, "kind": "log-probability of the response and its end"}

    def texts(self, lm: FrozenLM, items: Sequence[Item]) -> list[Text]:
        return lm.renderer.responses([(i.prompt, i.responses[0]) for i in items], self.max_tokens, end=True)

    @torch.inference_mode()
    def vectors(self, lm: FrozenLM, hidden: Tensor, batch: Batch) -> Tensor:
        """(spans, 1)"""
        return log_probs(lm, hidden, batch).unsqueeze(-1)
