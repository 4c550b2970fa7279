"""The head on a CPU says what TRL's own says, and its gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trl.trainer.dpo_trainer as trl_dpo
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from fedvpa.alignment.head import CompletionLogProbs, cpu_head


def test_values_and_gradients() -> None:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(150, 8, generator=g).requires_grad_(True)
    weight, targets = torch.randn(40, 8, generator=g), torch.randint(40, (150,), generator=g)
    upstream = torch.randn(150, generator=g)
    by_hand = (hidden @ weight.T).log_softmax(-1)[range(150), targets]
    (expected,) = torch.autograd.grad((by_hand * upstream).sum(), hidden)
    found = CompletionLogProbs.apply(hidden, weight, targets)
    torch.testing.assert_close(found, by_hand)
    (gradient,) = torch.autograd.grad((found * upstream).sum(), hidden)
    torch.testing.assert_close(gradient, expected)


def test_it_stands_in_for_trls(chatty: Path) -> None:
    ids = torch.arange(5, 25).view(2, 10)
    labels = ids.masked_fill(torch.arange(10) < torch.tensor([[3], [6]]), -100)
    outputs = []
    for ours in (False, True):
        lm = AutoModelForCausalLM.from_pretrained(chatty).requires_grad_(False)
        plain = lm(ids).logits
        if ours:
            with cpu_head(lm):
                trl_dpo.add_fused_lm_head(lm, outputs=("log_probs",))
            assert trl_dpo.add_fused_lm_head is add_fused_lm_head
        else:
            add_fused_lm_head(lm)
        torch.testing.assert_close(lm(ids).logits, plain)
        lm.get_input_embeddings().register_forward_hook(lambda m, a, out: out.requires_grad_(True))
        out = lm(ids, labels=labels, fused_lm_head=True)
        outputs.append((out.log_probs, out.loss))
    torch.testing.assert_close(outputs[1], outputs[0])
    assert outputs[1][0].requires_grad


@pytest.mark.parametrize("what", ["softcapping", "trained"])
def test_elsewhere_it_is_trls_own(chatty: Path, what: str) -> None:
    lm = AutoModelForCausalLM.from_pretrained(chatty).requires_grad_(what == "trained")
    if what == "softcapping":
        lm.config.final_logit_softcapping = 30.0
    with cpu_head(lm):
        assert trl_dpo.add_fused_lm_head is add_fused_lm_head
