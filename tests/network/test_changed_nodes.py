"""A node whose data, or whose backbone, are not those of round 0 takes no part, and says so in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fake_grid import FakeGrid, nodes_of
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.network.client_app import CHANGED
from fedvpa.network.node import Node
from fedvpa.network.server_app import Server, connect
from fedvpa.network.state import KnownData, forget_user
from fedvpa.preferences.schema import LabelledPairs
from toy import method_of, preferences, settings, world

SHORT = {"network__wait": 0.01, "network__timeout": 1.0, "network__retries": 0, "federation__sampled_clients": 6}


def nodes(config: ExperimentConfig, folder: Path) -> list[Node]:
    data, features = preferences(config)
    return nodes_of(config, data, features, folder / "nodes", 2)


def relabelled(node: Node, position: int) -> Node:
    """The node, one of whose users says the opposite of one label."""
    client = node.clients[position]
    y = client.train.y.clone()
    y[0] = -y[0]
    changed = list(node.clients)
    changed[position] = replace(client, train=LabelledPairs(client.train.index, y))
    return replace(node, clients=tuple(changed))


def serve(config: ExperimentConfig, made: list[Node], folder: Path, **options: Any) -> Server:
    return connect(FakeGrid(made), config, folder, groups=2, say=lambda _: None, **options)


def test_a_user_whose_data_changed_between_rounds_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(**SHORT)
    made, method = nodes(config, tmp_path), method_of(world(config))
    server = serve(config, made, tmp_path)
    grid = server.nodes.grid
    assert isinstance(grid, FakeGrid)
    changed = relabelled(made[1], 0)

    def after(report: Any, _: Any) -> None:
        if report.round == 2:
            grid.apps[2] = FakeGrid([changed]).apps[1]

    server.train(method, config, callback=after)
    user = made[1].names[0]
    lines = server.faults.path.read_text().splitlines()
    assert len(lines) == config.federation.rounds - 2
    assert all(CHANGED in line and user in line and made[1].names[1] not in line for line in lines)
    assert "the data of 1 users have changed since round 0; put the former data back" in capsys.readouterr().out


def test_a_restarted_server_does_not_take_the_changed_user_back(tmp_path: Path) -> None:
    config = settings(**SHORT)
    made = nodes(config, tmp_path)
    serve(config, made, tmp_path)
    again = serve(config, [made[0], relabelled(made[1], 2)], tmp_path)
    assert made[1].names[2] not in again.nodes.held[2]
    assert again.nodes.held[1] == made[0].names
    assert again.faults.counts == {"refused": 1}
    back = serve(config, made, tmp_path)
    assert back.nodes.held[2] == made[1].names


def test_another_training_takes_the_data_as_they_are_now(tmp_path: Path) -> None:
    config = settings(**SHORT)
    made = nodes(config, tmp_path)
    serve(config, made, tmp_path / "one")
    fresh = serve(config, [made[0], relabelled(made[1], 0)], tmp_path / "two")
    assert fresh.nodes.held[2] == made[1].names


def test_a_node_with_another_backbone_is_left_out(tmp_path: Path) -> None:
    config = settings(**SHORT)
    made = [replace(n, known_by=known) for n, known in zip(nodes(config, tmp_path), ("here", "there"), strict=True)]
    both = settings(**SHORT, network__min_nodes=2)
    with pytest.raises(UserError, match="1 nodes"):
        serve(both, made, tmp_path, known_by="here")
    server = serve(config, [replace(n, known_by="here") for n in made], tmp_path / "b", known_by="here")
    assert len(server.nodes.held) == 2
    server = serve(config, made, tmp_path / "c", known_by="here")
    assert list(server.nodes.held) == [1]
    assert "other backbone files" in server.faults.path.read_text()


def test_forgetting_a_user_takes_its_fingerprint_too(tmp_path: Path) -> None:
    known = KnownData(tmp_path, "t")
    assert known.changed({"ada": "1", "bob": "2"}) == set()
    assert KnownData(tmp_path, "t").changed({"ada": "1", "bob": "3"}) == {"bob"}
    assert forget_user(tmp_path, "ada") == [tmp_path / "data.json"]
    assert "ada" not in (tmp_path / "data.json").read_text()
    assert forget_user(tmp_path, "ada") == []
