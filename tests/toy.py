"""A small world without text: random features, and groups of users whose preference is a linear rule."""

from __future__ import annotations

from typing import Any

import torch

from fedvpa.backbone import Features
from fedvpa.backbone.encode import EncodeReport
from fedvpa.config import ExperimentConfig, parse_config
from fedvpa.evaluation.experiment import Prepared, prepare
from fedvpa.methods.registry import create
from fedvpa.preferences.order import chosen_first
from fedvpa.preferences.schema import Client, FederatedPreferences, LabelledPairs, Message, Pair
from fedvpa.preferences.seeding import generator

PAIRS = {"train": 120, "validation": 40, "test": 60}
DIM = 6


def settings(**overrides: Any) -> ExperimentConfig:
    """A tiny configuration; keys are written ``section__key``."""
    tree: dict[str, Any] = {
        "data": {"pairs_per_client": 10},
        "model": {"latent_dim": 4, "hidden_dim": 12, "encoder_dim": 8, "feature_dropout": 0.0},
        "laplace": {"latent_dim": 4},
        "method": {"name": "fedvpa-gp", "samples": 2, "attention_rounds": 4},
        "federation": {
            "clients": 6,
            "unseen_clients": 4,
            "validation_clients": 4,
            "sampled_clients": 4,
            "context_pairs": 4,
            "rounds": 4,
            "local_steps": 3,
            "local_optimizer": "adamw",
            "learning_rate": 1e-3,
            "server_optimizer": "average",
            "server_learning_rate": 0.3,
            "device": "cpu",
            "dtype": "float64",
        },
        "evaluation": {"every": 2},
    }
    for key, value in overrides.items():
        section, _, name = key.rpartition("__")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return parse_config(tree)


def preferences(
    config: ExperimentConfig, groups: int = 2, ragged: bool = False, known: bool = True
) -> tuple[FederatedPreferences, Features]:
    """Users of `groups` groups: 1 wants the opposite of 0, 3 of 2; `ragged` users hold between 2 and 10 pairs."""
    g = generator(config.seed, "toy")
    total = sum(PAIRS.values())
    a, b = torch.randn(2, total, DIM, generator=g)
    rules = torch.zeros(groups, DIM)
    for k in range(groups):
        rules[k, k // 2] = 1 - 2 * (k % 2)
    labels = torch.where(rules @ (a - b).T > 0, 1, -1).to(torch.int8)
    split = [name for name, n in PAIRS.items() for _ in range(n)]
    held = {name: torch.tensor([i for i, s in enumerate(split) if s == name]) for name in PAIRS}

    def client(population: str, i: int) -> Client:
        group, n = i % groups, config.data.pairs_per_client
        if ragged and population == "seen":
            n = max(2, n - 3 * (i % 4))
        mine = held["train"][torch.randperm(PAIRS["train"], generator=g)[:n]]
        asked = held["validation" if population == "validation" else "test"]
        return Client(
            f"{population}-{i}",
            group if known else None,
            LabelledPairs(mine, labels[group, mine]),
            LabelledPairs(asked, labels[group, asked]),
        )

    f = config.federation
    sizes = {"seen": f.clients, "validation": f.validation_clients, "unseen": f.unseen_clients}
    names = tuple(f"rule {k}" for k in range(groups)) if known else ()
    data = FederatedPreferences(
        pairs=tuple(Pair((Message("user", f"prompt {i}"),), f"first {i}", f"second {i}") for i in range(total)),
        split=tuple(split),
        groups=names,
        opposite=tuple(k ^ 1 if k ^ 1 < groups else (k + 1) % groups for k in range(len(names))),
        group_labels=labels if known else labels[:0],
        clients={p: tuple(client(p, i) for i in range(n)) for p, n in sizes.items()},
    )
    return data, Features.of_pairs(a, b, None, EncodeReport(total, total, 0, 0, 0, 0, 0.0, None))


def world(config: ExperimentConfig, **options: Any) -> Prepared:
    """The toy, prepared like any other data."""
    data, features = preferences(config, **options)
    if config.data.order == "chosen-first":
        data = chosen_first(data)
        a, b = torch.cat([features.a, features.b]), torch.cat([features.b, features.a])
        features = Features.of_pairs(a, b, None, features.report)
    return prepare(config, data, features)


def method_of(prepared: Prepared, name: str = "fedvpa-gp", config: ExperimentConfig | None = None) -> Any:
    config = config or prepared.config
    config = config.model_copy(update={"method": config.method.model_copy(update={"name": name})})
    return create(name, prepared.setup(config))
