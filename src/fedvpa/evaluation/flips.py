"""Two people who were asked about the same two items and disagree, and what is predicted of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedvpa.evaluation.protocol import Panel
from fedvpa.methods.base import Predictor
from fedvpa.preferences.schema import Pair


def find_flips(predictor: Predictor, panel: Panel, pairs: Sequence[Pair], size: int, inference: str) -> dict[str, Any]:
    """Of all couples of people who disagree about a query pair, those who are both predicted rightly.

    Args:
        pairs: the pool that the panel's queries refer to.
        size: judgements that each person is inferred from; people with fewer are left out.
        inference: one of `predictor.inferences`.

    Returns:
        ``answers``: size; ``couples``: couples who disagree; ``right``: those of them of whom both are predicted
        rightly, which needs two different predictions; ``clearest``: None, or of these couples the one whose less
        certain prediction is the most certain: texts ``a`` and ``b``, and p(a > b) ``first`` of the person who
        prefers a and ``second`` of the one who prefers b.
    """
    users = predictor.infer(panel.context_for(predictor, size), inference, panel.groups)
    p = predictor.predict(users, panel.query)
    complete = (panel.judgements(size).weight > 0).sum(-1) >= size
    real = panel.query_mask & complete.unsqueeze(-1)
    row, y, p = panel.query[real], panel.query_y[real], p[real]
    plus, minus = y > 0, y < 0

    def count(who: torch.Tensor) -> torch.Tensor:
        return torch.bincount(row[who], minlength=len(pairs))

    def highest(who: torch.Tensor) -> torch.Tensor:
        certain = torch.where(plus, p, 1 - p)[who]
        return certain.new_zeros(len(pairs)).scatter_reduce(0, row[who], certain, "amax")

    right = (plus & (p > 0.5)) | (minus & (p < 0.5))
    both = torch.minimum(highest(plus & right), highest(minus & right))
    at = int(both.argmax())
    clearest = None
    if both[at] > 0.5:
        first, second = float(highest(plus)[at]), 1 - float(highest(minus)[at])
        clearest = {"a": pairs[at].a, "b": pairs[at].b, "first": first, "second": second}
    return {
        "answers": size,
        "couples": int((count(plus) * count(minus)).sum()),
        "right": int((count(plus & right) * count(minus & right)).sum()),
        "clearest": clearest,
    }
