"""LoRA on the language model over a network: the loop's numbers, whatever the nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fake_grid import FakeGrid, nodes_of
from fedvpa.backbone.encode import Features
from fedvpa.config import ExperimentConfig
from fedvpa.evaluation.encoding import encode
from fedvpa.evaluation.experiment import Prepared
from fedvpa.evaluation.protocol import make_panel, score_predictions
from fedvpa.federation import rounds
from fedvpa.methods.registry import create
from fedvpa.network.server_app import Server, connect
from tiny_language import configuration, world

NETWORK = {"network__wait": 0.01, "network__timeout": 1.0, "lora__rounds": 2}


def connected(config: ExperimentConfig, prepared: Prepared, folder: Path, nodes: int) -> tuple[Server, FakeGrid]:
    features: Features = encode(config, prepared.data, progress=False)
    texts = prepared.pool.texts
    made = [replace(n, texts=texts) for n in nodes_of(config, prepared.data, features, folder / "nodes", nodes)]
    grid = FakeGrid(made)
    return connect(grid, config, folder, groups=2, say=lambda _: None), grid


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("feddpo", {}),
        ("feddpo", {"privacy__clip": 0.05, "privacy__noise": 0.5}),
        ("fedbt", {"backbone__train": "lora", "lora__learning_rate": 0.01}),
    ],
)
def test_the_numbers_are_those_of_the_loop(
    experiment: Path, tmp_path: Path, name: str, overrides: dict[str, Any]
) -> None:
    config = configuration(experiment, name, **NETWORK, **overrides)
    prepared = world(config)
    method: Any = create(name, prepared.setup(config))
    expected = rounds.train(method, config, prepared.clients)
    server, _ = connected(config, prepared, tmp_path, nodes=2)
    found = server.train(method, config)
    assert not server.faults.counts
    assert found.server.round == 2
    first = rounds.start(method, config, len(prepared.clients)).server.theta
    for key, value in expected.server.theta.items():
        torch.testing.assert_close(found.server.theta[key], value, atol=1e-6, rtol=1e-5)
        assert (value - first[key]).abs().max() > 1e-4
    if config.privacy.on:
        return
    pool = prepared.pool
    panel = make_panel(prepared.data, prepared.data.clients["seen"], config.seed, pool)
    p = method.predictor(expected.server, pool).predict(None, panel.query)
    assert server.evaluate(method, found) == pytest.approx({"none": score_predictions(panel, p).values["accuracy"]})
