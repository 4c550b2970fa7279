"""A small world of texts for the methods that train the language model: a tiny model, a dozen users, two wishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedvpa.backbone.adapters import AdaptedLM, adapted
from fedvpa.config import ExperimentConfig, parse_config
from fedvpa.evaluation.experiment import Prepared, prepare
from fedvpa.preferences.sources import load_preferences

SMALL: dict[str, Any] = {
    "backbone": {"dtype": "float32", "max_tokens": 256},
    "lora": {"rank": 2, "alpha": 8, "local_steps": 2, "batch_pairs": 4, "learning_rate": 0.01, "rounds": 3},
    "model": {"latent_dim": 4, "hidden_dim": 12, "encoder_dim": 8},
    "federation": {
        "clients": 6,
        "unseen_clients": 2,
        "validation_clients": 2,
        "sampled_clients": 3,
        "rounds": 5,
        "device": "cpu",
    },
    "evaluation": {"every": 2, "bootstrap": 100},
    "output": {"checkpoint_every": 1},
}


def configuration(experiment: Path, name: str = "feddpo", **overrides: Any) -> ExperimentConfig:
    """The tiny experiment on disk (`conftest.experiment`), smaller; keys are written ``section__key``."""
    import yaml

    given = yaml.safe_load(experiment.read_text())
    tree = {k: {**given.get(k, {}), **SMALL.get(k, {})} for k in {*given, *SMALL}}
    for key, value in overrides.items():
        section, _, field = key.rpartition("__")
        (tree.setdefault(section, {}) if section else tree)[field] = value
    return parse_config(tree).for_method(name)


def world(config: ExperimentConfig) -> Prepared:
    """Its data, with the tokens that the method needs."""
    return prepare(config, load_preferences(config)).with_texts(config)


def some_adapter(lm: AdaptedLM, scale: float = 0.3, seed: int = 0) -> dict[str, Tensor]:
    """An adapter that changes the model."""
    g = torch.Generator().manual_seed(seed)
    return {k: scale * torch.randn(shape, generator=g) for k, shape in lm.shapes.items()}


def language_model(config: ExperimentConfig) -> AdaptedLM:
    return adapted(config)
