"""A policy with random weights, which listens to its latent."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from fedvpa import Selector
from fedvpa.alignment.conditioning import PROJECTION
from fedvpa.alignment.config import ConditioningConfig, PolicyConfig
from fedvpa.alignment.language import Conditioned, LanguageModel
from fedvpa.alignment.policy import save_policy
from fedvpa.alignment.sampling import Sampling
from fedvpa.backbone.models import cache_dir


def save_random_policy(run: Path, out: Path) -> Path:
    """Writes a policy for a run's selector into a folder that exists."""
    selector = Selector.from_pretrained(run)
    config = selector.info.config
    base = PolicyConfig(model=config.backbone.model, dtype="float32", device="cpu")
    how = Conditioned.of(ConditioningConfig(kind="added"), selector.centres)
    model = LanguageModel.load(base, cache_dir(config), how)
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", modules_to_save=[PROJECTION], r=2)
    trained = get_peft_model(model.lm, lora)
    for name, p in trained.named_parameters():
        if p.requires_grad and ("lora_B" in name or PROJECTION in name):
            torch.nn.init.normal_(p, std=0.3)
    save_policy(out, trained, selector, base, model.identity, how, Sampling(), 16)
    return out
