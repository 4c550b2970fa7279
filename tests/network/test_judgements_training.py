"""People's votes, ratings and choices over a network: `fedvpa-laplace`, whose clients send sums besides parameters."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from fake_grid import FakeGrid, Tamper, nodes_of
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.evaluation.experiment import prepare
from fedvpa.evaluation.protocol import make_panel, score_predictions
from fedvpa.federation import checkpoint, rounds
from fedvpa.federation.rounds import TrainingState
from fedvpa.network import messages
from fedvpa.network.node import NETWORKED
from fedvpa.network.server_app import Server, connect
from fedvpa.preferences.schema import RATING, Client, FederatedPreferences, RatingSums
from toy import method_of
from toy_people import laplace_settings, people, people_world

KINDS = {
    "choices": ("choice",),
    "votes": ("vote",),
    "ratings": ("rating",),
    "mixed": ("choice", "vote", "rating"),
}


def experiment(**overrides: Any) -> ExperimentConfig:
    given = {
        "laplace__error": 0.05,
        "laplace__dropout": 0.3,
        "network__wait": 0.01,
        "network__timeout": 1.0,
        "output__checkpoint_every": 1,
    }
    return laplace_settings(**given | overrides)


def connected(
    config: ExperimentConfig,
    folder: Path,
    kinds: str = "mixed",
    nodes: int = 3,
    tamper: Tamper | None = None,
    round: int = 0,
) -> tuple[Server, FakeGrid]:
    data, features = people(config, KINDS[kinds], ragged=True)
    grid = FakeGrid(nodes_of(config, data, features, folder / "nodes", nodes), tamper)
    return connect(grid, config, folder, round, groups=2, say=lambda _: None), grid


def untrained(config: ExperimentConfig) -> Any:
    """The method that a server trains."""
    return method_of(people_world(config, kinds=KINDS["mixed"], ragged=True), config.method.name)


def reference(config: ExperimentConfig, kinds: str = "mixed") -> tuple[Any, TrainingState]:
    prepared = people_world(config, kinds=KINDS[kinds], ragged=True)
    method = method_of(prepared, config.method.name)
    return method, rounds.train(method, config, prepared.clients)


def apart(one: TrainingState, two: TrainingState) -> float:
    """The largest difference of anything that the server holds."""
    values = []
    for state in (one, two):
        server = {k: v for k, v in vars(state.server).items() if isinstance(v, torch.Tensor)}
        rest = {f"o.{k}": v for k, v in state.optimizer.items()} | {f"e.{k}": v for k, v in state.server.extra.items()}
        values.append({**server, **state.server.theta, **rest})
    assert values[0].keys() == values[1].keys()
    return max(float((v - values[1][k]).abs().max()) for k, v in values[0].items() if v.numel())


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "network" / "faults.jsonl").read_text().splitlines()]


def test_the_method_trains_over_a_network() -> None:
    assert "fedvpa-laplace" in NETWORKED


@pytest.mark.parametrize(
    ("kinds", "nodes"),
    [
        *((kinds, 3) for kinds in KINDS),
        ("mixed", 1),
        *(pytest.param(kinds, 1, marks=pytest.mark.slow) for kinds in KINDS if kinds != "mixed"),
    ],
)
def test_the_numbers_are_those_of_the_vectorised_engine(kinds: str, nodes: int, tmp_path: Path) -> None:
    config = experiment()
    method, expected = reference(config, kinds)
    server, _ = connected(config, tmp_path, kinds, nodes)
    found = server.train(method, config)
    assert found.server.round == config.federation.rounds
    assert len(found.server.shares) > 1
    assert apart(found, expected) < 1e-9
    assert not server.faults.counts


def moved(data: FederatedPreferences, nodes: int) -> FederatedPreferences:
    """The same people, who rate around 3 at node 1, around 7 at node 2, and so on, and more widely at each."""

    def rates(c: Client, node: int) -> Client:
        assert c.judgements is not None
        j = c.judgements
        value = torch.where(j.kind == RATING, (node + 1) * j.value + 3 + 4 * node, j.value)
        judgements = replace(j, value=value)
        return replace(c, judgements=judgements, ratings=RatingSums.of(judgements))

    return replace(
        data, clients={p: tuple(rates(c, i % nodes) for i, c in enumerate(cs)) for p, cs in data.clients.items()}
    )


@pytest.mark.parametrize("kinds", ["ratings", "mixed"])
def test_nodes_whose_people_rate_differently_apply_one_scale(kinds: str, tmp_path: Path) -> None:
    config = experiment()
    data, features = people(config, KINDS[kinds], ragged=True)
    data = moved(data, 2)
    prepared = prepare(config, data, features)
    method = method_of(prepared, config.method.name)
    expected = rounds.train(method, config, prepared.clients)
    held = nodes_of(config, data, features, tmp_path / "nodes", 2)
    own = [np.mean([v for c in node.clients for v in c.judgements.value[c.judgements.kind == RATING]]) for node in held]
    assert own[1] - own[0] > 3
    server = connect(FakeGrid(held), config, tmp_path, groups=2, say=lambda _: None)
    assert server.session.rating_scale == prepared.pool.rating_scale
    assert own[0] < server.session.rating_scale[0] < own[1]
    found = server.train(method, config)
    assert apart(found, expected) < 1e-9
    accuracy = server.evaluate(method, found)
    panel = prepared.panels["seen"]
    predictor = method.predictor(expected.server, prepared.pool)
    for how, value in accuracy.items():
        users = predictor.infer(panel.context_for(predictor, config.federation.context_pairs), how)
        right = score_predictions(panel, predictor.predict(users, panel.query)).values["accuracy"]
        assert value == pytest.approx(right, abs=1e-6)
    # A restarted server goes on with the scale of round 0.
    again = connect(FakeGrid(held), config, tmp_path, 8, groups=2, say=lambda _: None)
    assert again.session.rating_scale == server.session.rating_scale


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ratings", -1.0, "moments.ratings is below 0"),
        ("ratings", 1e9, "moments.ratings is above 2e+07"),
        ("rating_total", -1e20, "moments.rating_total is below -2e+13"),
        ("rating_squares", -1.0, "moments.rating_squares is below 0"),
        ("rating_squares", np.nan, "moments.rating_squares is not finite"),
    ],
)
def test_forged_sums_of_ratings_leave_their_people_out(name: str, value: float, reason: str, tmp_path: Path) -> None:
    def tamper(node: int, reply: Message) -> Message | None:
        if node == 2:
            record = reply.content["arrays"]
            array = record[f"moments.{name}"]
            record[f"moments.{name}"] = type(array)(np.full_like(array.numpy(), value))
        return reply

    server, _ = connected(experiment(), tmp_path, tamper=tamper)
    assert len(server.session.users) == 4
    assert {(e["node"], e["kind"], e["reason"]) for e in entries(tmp_path)} == {(2, "rejected", reason)}


def test_a_node_of_another_version_is_refused_at_the_start(tmp_path: Path) -> None:
    def tamper(node: int, reply: Message) -> Message | None:
        if node == 2:
            reply.content["reply"]["protocol"] = messages.PROTOCOL - 1
            for name in ("ratings", "rating_total", "rating_squares"):
                del reply.content["arrays"][f"moments.{name}"]
        return reply

    server, _ = connected(experiment(), tmp_path, tamper=tamper)
    assert len(server.session.users) == 4
    assert {e["reason"] for e in entries(tmp_path)} == {
        "enroll: another protocol; use one version of fedvpa everywhere"
    }


def test_a_node_refuses_a_server_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    data, features = people(config := experiment(), ragged=True)
    monkeypatch.setattr("fedvpa.network.nodes.PROTOCOL", messages.PROTOCOL - 1)
    with pytest.raises(UserError, match="0 nodes with 0 users"):
        connect(FakeGrid(nodes_of(config, data, features, tmp_path / "nodes", 1)), config, tmp_path, say=said.append)
    assert any("not a task of this protocol; use one version of fedvpa everywhere" in line for line in said)


def test_single_precision_agrees_too(tmp_path: Path) -> None:
    config = experiment(federation__dtype="float32", laplace__learning_rate=1e-4)
    method, expected = reference(config)
    server, _ = connected(config, tmp_path)
    assert apart(server.train(method, config), expected) < 1e-2


def test_a_nodes_upload_is_as_large_for_many_people_as_for_few(tmp_path: Path) -> None:
    sizes = []
    for clients in (6, 18):
        config = experiment(federation__clients=clients, federation__sampled_clients=6)
        method = untrained(config)
        reports: list[rounds.RoundReport] = []
        server, _ = connected(config, tmp_path / str(clients))
        server.train(method, config, callback=lambda r, _, reports=reports: reports.append(r))
        sizes.append([(r.bytes_up, r.bytes_down) for r in reports])
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("back", [0, 1])
def test_a_killed_server_goes_on_with_the_same_result(back: int, tmp_path: Path) -> None:
    config = experiment()
    method, expected = reference(config)
    server, _ = connected(config, tmp_path)

    def kill(_: Any, state: TrainingState) -> None:
        checkpoint.save(tmp_path / "checkpoints", state, {})
        if state.server.round == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.train(method, config, callback=kill)
    state = checkpoint._read(checkpoint.checkpoints(tmp_path / "checkpoints")[back])
    assert not isinstance(state, str)
    again, _ = connected(config, tmp_path, round=6 - back)
    assert again.session.training == server.session.training
    assert apart(again.train(method, config, state=state[0]), expected) < 1e-9


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Tamper:
    """Node 2's uploads with another array in the place of `name`."""

    def tamper(node: int, reply: Message) -> Message | None:
        if node == 2 and reply.metadata.message_type == "train":
            record = reply.content["arrays"]
            record[name] = type(record[name])(change(record[name].numpy()))
        return reply

    return tamper


FORGED = {
    "a person who counts as five": ("sums.people", lambda v: v * 5, "sums.people is above 1"),
    "nobody": ("sums.people", lambda v: v * 0, "sums.people is below 1"),
    "a negative share": ("sums.count", lambda v: -v, "sums.count is below 0"),
    "more than one component each": ("sums.count", lambda v: v + 2, "sums.count is above 1.001"),
    "a mean far away": ("sums.first", lambda v: v + 1e9, "sums.first is above 1000"),
    "a negative square": ("sums.second", lambda v: -v - 1, "sums.second is below 0"),
    "not a number": ("sums.second", lambda v: v * np.nan, "sums.second is not finite"),
    "a negative residual": ("sums.residual", lambda v: v - 1e3, "sums.residual is below 0"),
    "another shape": ("sums.first", lambda v: v[:, :, :2].copy(), "sums.first has shape"),
    "another dtype": ("sums.wrong", lambda v: v.astype("float32"), "sums.wrong has another dtype"),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_sum_is_refused_and_the_round_goes_on(forgery: str, tmp_path: Path) -> None:
    name, change, reason = FORGED[forgery]
    config = experiment(laplace__rounds=4, laplace__components_start=0.25)
    method = untrained(config)
    server, _ = connected(config, tmp_path, tamper=changed(name, change))
    state = server.train(method, config)
    assert state.server.round == config.federation.rounds
    assert all(torch.isfinite(v).all() for v in {**state.server.theta, **state.server.extra}.values())
    assert server.faults.counts.keys() == {"rejected"}
    assert {e["node"] for e in entries(tmp_path)} == {2}
    assert all(reason in e["reason"] for e in entries(tmp_path))


@pytest.mark.parametrize("change", ["missing", "undeclared"])
def test_sums_that_were_not_asked_for_or_do_not_come_are_refused(change: str, tmp_path: Path) -> None:
    def tamper(node: int, reply: Message) -> Message | None:
        if node == 2 and reply.metadata.message_type == "train":
            record = reply.content["arrays"]
            if change == "missing":
                del record["sums.first"]
            else:
                record["sums.votes"] = copy.deepcopy(record["sums.people"])
        return reply

    config = experiment()
    method = untrained(config)
    server, _ = connected(config, tmp_path, tamper=tamper)
    server.train(method, config)
    name = "sums.first is missing" if change == "missing" else "sums.votes is not declared"
    assert server.faults.counts.keys() == {"rejected"}
    assert {e["reason"] for e in entries(tmp_path)} == {name}


def test_no_judgement_leaves_a_node(tmp_path: Path) -> None:
    """The arrays of every reply, by name: parameters, sums, numbers, and nothing with a row for each judgement."""
    names: set[str] = set()
    shapes: dict[str, set[int]] = {}

    def look(node: int, reply: Message) -> Message | None:
        if reply.metadata.message_type == "train":
            for name, array in reply.content["arrays"].items():
                names.add(name.partition(".")[0])
                shapes.setdefault(name, set()).add(len(array.shape))
        return reply

    config = experiment()
    method = untrained(config)
    server, _ = connected(config, tmp_path, tamper=look)
    state = server.train(method, config)
    assert names == {"theta", "sums", "means", "variances", "counts", "metrics"}
    for name, value in state.server.theta.items():
        assert shapes[f"theta.{name}"] == {value.dim() + 1}


def test_accuracy_of_the_clients_own_pairs(tmp_path: Path) -> None:
    config = experiment(laplace__learning_rate=0.01)
    method, state = reference(config)
    server, _ = connected(config, tmp_path)
    accuracy = server.evaluate(method, server.train(method, config))
    assert accuracy.keys() == {"mixture", "gaussian"}
    prepared = people_world(config, kinds=KINDS["mixed"], ragged=True)
    panel = make_panel(prepared.data, prepared.data.clients["seen"], config.seed, prepared.pool)
    predictor = method.predictor(state.server, prepared.pool)
    for how, found in accuracy.items():
        users = predictor.infer(panel.context_for(predictor, config.federation.context_pairs), how)
        expected = score_predictions(panel, predictor.predict(users, panel.query)).values["accuracy"]
        assert found == pytest.approx(expected, abs=1e-6), how
