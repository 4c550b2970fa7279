"""The real SmolLM2-135M: a few steps of FedDPO lower the loss, and the base model answers as before."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvpa.backbone.pairs import pair_texts
from fedvpa.config import parse_config
from fedvpa.methods.base import Setup, stack_theta
from fedvpa.methods.registry import class_of
from fedvpa.preferences.schema import Message, Pair

pytestmark = pytest.mark.slow


def test_a_few_steps_of_feddpo(tmp_path: Path) -> None:
    tree = {"backbone": {"dtype": "float32"}, "federation": {"device": "cpu"}}
    config = parse_config({**tree, "lora": {"max_tokens": 64}}).for_method("feddpo")
    method: Any = class_of(config)(Setup(config, 576, 2, 2))
    pairs = [
        Pair((Message("user", f"What is {i} plus {i}?"),), f"It is {2 * i}, of course!", "I do not know.")
        for i in (1, 2)
    ]
    texts = pair_texts(method.lm.lm.renderer, "responses", pairs, method.lm.max_tokens)
    before = method.lm.reference(texts)
    assert (before < 0).all()
    theta = stack_theta(method.initial(torch.Generator().manual_seed(0)), 1)
    assert sum(v.numel() for v in theta.values()) == 460_800  # rank 8 on q and v of 30 layers
    optimizer, losses = torch.optim.AdamW(theta.values(), lr=5e-4), []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(float(method._backward(theta, texts, torch.ones(2), torch.zeros(2))))
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[-1] < losses[0] - 0.05
    nothing = {k: torch.zeros_like(v[0]) for k, v in theta.items()}
    with torch.no_grad():
        after = method.lm.log_probs(texts.texts, nothing).reshape(2, 2)
    torch.testing.assert_close(after, before, atol=1e-2, rtol=0)
