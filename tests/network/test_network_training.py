"""Training over a network: the numbers of the vectorised engine, whatever the nodes, restarts and faults."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_grid import FakeGrid, Tamper, nodes_of
from flwr.app import Message

from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.federation import checkpoint, rounds
from fedvpa.federation.rounds import TrainingState
from fedvpa.network.server_app import Server, connect
from toy import method_of, preferences, settings, world

METHODS = ["fedvpa-gp", "fedvpl", "fedvpl+prior", "fedvpl+ortho", "vmtl", "fedbt"]


def experiment(name: str = "fedvpa-gp", **overrides: Any) -> ExperimentConfig:
    """Prior and clusters are on for half of the rounds; network waits are short."""
    given = {
        "method__name": name,
        "method__prior_start": 0.25,
        "method__ortho_start": 0.25,
        "model__feature_dropout": 0.3,
        "federation__server_optimizer": "adam",
        "network__wait": 0.01,
        "network__timeout": 1.0,
        "output__checkpoint_every": 1,
    }
    return settings(**given | overrides)


def connected(
    config: ExperimentConfig, folder: Path, nodes: int = 3, tamper: Tamper | None = None, round: int = 0
) -> tuple[Server, FakeGrid]:
    data, features = preferences(config, ragged=True)
    grid = FakeGrid(nodes_of(config, data, features, folder / "nodes", nodes), tamper)
    server = connect(grid, config, folder, round, groups=2, say=lambda _: None)
    return server, grid


def reference(config: ExperimentConfig) -> tuple[Any, TrainingState]:
    prepared = world(config, ragged=True)
    method = method_of(prepared, config.method.name)
    return method, rounds.train(method, config, prepared.clients)


def apart(one: TrainingState, two: TrainingState) -> float:
    """The largest difference of anything that the server holds."""
    values = []
    for state in (one, two):
        server = {k: v for k, v in vars(state.server).items() if isinstance(v, torch.Tensor)}
        values.append({**server, **state.server.theta, **{f"o.{k}": v for k, v in state.optimizer.items()}})
    assert values[0].keys() == values[1].keys()
    return max(float((v - values[1][k]).abs().max()) for k, v in values[0].items() if v.numel())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("nodes", [1, 3, 6])
def test_the_numbers_are_those_of_the_vectorised_engine(name: str, nodes: int, tmp_path: Path) -> None:
    config = experiment(name)
    method, expected = reference(config)
    server, _ = connected(config, tmp_path, nodes)
    assert len(server.session.users) == config.federation.clients
    found = server.train(method, config)
    assert found.server.round == config.federation.rounds
    assert apart(found, expected) < 1e-9
    assert not server.faults.counts


def test_single_precision_agrees_too(tmp_path: Path) -> None:
    config = experiment(federation__dtype="float32")
    method, expected = reference(config)
    server, _ = connected(config, tmp_path)
    assert apart(server.train(method, config), expected) < 1e-4
