"""Training over a network: the numbers of the vectorised engine, whatever the nodes, restarts and faults."""

from __future__ import annotations

import copy
import json
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
from fedvpa.evaluation.protocol import Panel, make_panel, score_predictions
from fedvpa.federation import checkpoint, privacy, rounds
from fedvpa.federation.rounds import TrainingState
from fedvpa.network.node import REFUSED
from fedvpa.network.nodes import ATTEMPTS
from fedvpa.network.server_app import Server, connect
from fedvpa.network.state import node_secret
from toy import method_of, preferences, settings, world

METHODS = ["fedvpa-laplace", "fedvpa-gp", "fedvpl", "fedvpl+prior", "fedvpl+ortho", "vmtl", "fedbt"]


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
        "laplace__rounds": 4,
    }
    return settings(**given | overrides).for_method(name)


def connected(
    config: ExperimentConfig, folder: Path, nodes: int = 3, tamper: Tamper | None = None, round: int = 0
) -> tuple[Server, FakeGrid]:
    data, features = preferences(config, ragged=True)
    grid = FakeGrid(nodes_of(config, data, features, folder / "nodes", nodes), tamper)
    server = connect(grid, config, folder, round, groups=2, say=lambda _: None)
    return server, grid


def untrained(config: ExperimentConfig) -> Any:
    """The method that a server trains."""
    return method_of(world(config, ragged=True), config.method.name)


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


def predicted(method: Any, config: ExperimentConfig, state: TrainingState) -> tuple[Panel, torch.Tensor]:
    """The seen users' panel, and p(a > b) of their queries with mixture inference."""
    prepared = world(config, ragged=True)
    panel = make_panel(prepared.data, prepared.data.clients["seen"], config.seed, prepared.pool)
    predictor = method.predictor(state.server, prepared.pool)
    users = predictor.infer(panel.context(config.federation.context_pairs), "mixture", panel.groups)
    return panel, predictor.predict(users, panel.query)


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        *((name, 3) for name in METHODS),
        *((name, nodes) for name in METHODS[:2] for nodes in (1, 6)),
        *(pytest.param(name, nodes, marks=pytest.mark.slow) for name in METHODS[2:] for nodes in (1, 6)),
    ],
)
def test_the_numbers_are_those_of_the_vectorised_engine(name: str, nodes: int, tmp_path: Path) -> None:
    config = experiment(name)
    method, expected = reference(config)
    server, _ = connected(config, tmp_path, nodes)
    assert len(server.session.users) == config.federation.clients
    found = server.train(method, config)
    assert found.server.round == config.federation.rounds
    assert apart(found, expected) < 1e-9
    assert not server.faults.counts


def test_a_compressed_prior_travels_as_well(tmp_path: Path) -> None:
    config = experiment(method__prior_components=3)
    method, expected = reference(config)
    server, _ = connected(config, tmp_path)
    assert apart(server.train(method, config), expected) < 1e-9
    assert expected.server.extra


NOISE = {
    "privacy__clip": 0.05,
    "privacy__noise": 0.5,
    "privacy__posterior_clip": 1.0,
    "privacy__posterior_noise": 0.5,
    "privacy__moments_clip": 3.0,
    "privacy__moments_noise": 2.0,
}


@pytest.mark.parametrize("name", ["fedvpa-gp", "fedbt"])
@pytest.mark.parametrize("nodes", [1, 3])
def test_with_privacy_on_the_numbers_and_epsilon_are_the_same(name: str, nodes: int, tmp_path: Path) -> None:
    config = experiment(name, **NOISE)
    prepared, spent = world(config, ragged=True), []
    method = method_of(prepared, name)
    expected = rounds.train(method, config, prepared.clients, callback=lambda r, _: spent.append(r.epsilon))
    seen: list[rounds.RoundReport] = []
    server, grid = connected(config, tmp_path, nodes)
    torch.testing.assert_close(server.session.standardizer.mean, prepared.standardizer.mean, atol=0, rtol=0)
    torch.testing.assert_close(server.session.standardizer.scale, prepared.standardizer.scale, atol=0, rtol=0)
    found = server.train(method, config, callback=lambda r, _: seen.append(r))
    assert apart(found, expected) < 1e-9
    assert [r.epsilon for r in seen] == spent
    assert 0 < spent[0] < spent[-1] < float("inf")
    assert apart(expected, reference(experiment(name))[1]) > 1e-3  # the noise is there
    # What a client holds and how well it is fitted stays with it.
    assert set(server.session.pairs) == {1}
    assert all(not r.metrics for r in seen)
    assert server.evaluate(method, found) == {}
    assert "evaluate" not in {kind for _, kind in grid.log}
    assert not server.faults.counts


def test_an_update_above_the_clip_is_rejected_on_arrival(tmp_path: Path) -> None:
    config = experiment(**NOISE)
    method = untrained(config)
    server, _ = connected(config, tmp_path, tamper=damaged(scaled(1.5)))
    server.train(method, config)
    assert server.faults.counts.keys() == {"rejected"}
    assert "privacy.clip" in (tmp_path / "network" / "faults.jsonl").read_text()


def test_with_privacy_on_nobody_stands_in_for_a_sampled_client(tmp_path: Path) -> None:
    """Who is away must not raise the others' chance of being sampled, on which the account counts."""
    config = experiment(federation__rounds=6, federation__sampled_clients=2, **NOISE)
    method = untrained(config)
    server, grid = connected(config, tmp_path, nodes=6)
    uploads: list[set[int]] = []
    grid.absent = {2}

    def callback(_: Any, state: TrainingState) -> None:
        uploads.append(set((state.server.counts > 0).nonzero().flatten().tolist()))

    server.train(method, config, callback=callback)
    known: set[int] = set()
    for round, after in enumerate(uploads):
        assert after - known <= set(rounds.sample_clients(config, 6, round).tolist())
        known = after
    assert server.faults.counts["unreachable"] > 0


def test_a_private_client_does_not_tell_its_accuracy_whoever_asks(tmp_path: Path) -> None:
    private, config = experiment(privacy__posterior_clip=1.0), experiment()
    data, features = preferences(private, ragged=True)
    grid = FakeGrid(nodes_of(private, data, features, tmp_path / "nodes", 3))
    server = connect(grid, config, tmp_path, groups=2, say=lambda _: None)
    method, state = reference(config)
    assert server.evaluate(method, state) == {}
    assert server.faults.counts["failed"] == config.federation.clients
    assert "accuracies stay at the clients" in (tmp_path / "network" / "faults.jsonl").read_text()


def test_secret_noise_is_a_nodes_own_and_answers_a_repeated_question_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although a SuperNode starts a process for each message, and so has a new process's secret each time."""
    config = experiment(privacy__secret_noise=True, network__min_clients=6, federation__sampled_clients=6, **NOISE)
    method = untrained(config)
    sent: list[Any] = []

    def twice(node: int, reply: Message) -> Message | None:
        if reply.metadata.message_type == "train" and node == 2 and len(sent) < 2:
            sent.append(reply.content["arrays"]["means"].numpy().copy())
            monkeypatch.setattr(privacy, "_secret", lambda: len(sent))
            return None
        return reply

    server, _ = connected(config, tmp_path, tamper=twice)
    server.train(method, config)
    assert np.array_equal(sent[0], sent[1])
    secrets = [node_secret(tmp_path / place / "node-1", t) for place in ("nodes", "again") for t in ("t", "u")]
    assert len(set(secrets)) == 4
    assert (tmp_path / "nodes/node-1/secret").stat().st_mode & 0o077 == 0


def test_single_precision_agrees_too(tmp_path: Path) -> None:
    config = experiment(federation__dtype="float32", federation__server_optimizer="average")
    method, expected = reference(config)
    server, _ = connected(config, tmp_path)
    assert apart(server.train(method, config), expected) < 1e-4


def test_single_precision_gives_the_same_scores_where_adam_enlarges_what_is_rounded(tmp_path: Path) -> None:
    """Adam divides a step by its size, so a parameter whose steps are near zero follows their rounding."""
    config = experiment(federation__dtype="float32")
    method, expected = reference(config)
    server, _ = connected(config, tmp_path)
    found, wanted = (predicted(method, config, s)[1] for s in (server.train(method, config), expected))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def checkpointing(config: ExperimentConfig, folder: Path, stop: int | None = None) -> Any:
    """A callback that saves after every round and, like kill -9, ends the server after round `stop`."""

    def callback(_: Any, state: TrainingState) -> None:
        checkpoint.save(folder / "checkpoints", state, {})
        if state.server.round == stop:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize("back", [0, 1])
def test_a_killed_server_goes_on_with_the_same_result(back: int, tmp_path: Path) -> None:
    """From the last checkpoint, or (as when that one is damaged) from the one before: clients go back with it."""
    config = experiment(federation__rounds=8)
    method, expected = reference(config)
    server, _ = connected(config, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        server.train(method, config, callback=checkpointing(config, tmp_path, stop=6))
    state = checkpoint._read(checkpoint.checkpoints(tmp_path / "checkpoints")[back])
    assert not isinstance(state, str)
    assert state[0].server.round == 6 - back
    again, _ = connected(config, tmp_path, round=6 - back)
    assert again.session.training == server.session.training
    found = again.train(method, config, state=state[0])
    assert apart(found, expected) < 1e-9


def test_private_state_survives_nodes_but_not_another_training(tmp_path: Path) -> None:
    config = experiment("vmtl", federation__rounds=8)
    method, expected = reference(config)
    server, _ = connected(config, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        server.train(method, config, callback=checkpointing(config, tmp_path, stop=6))
    other = tmp_path / "other"
    data, features = preferences(config, ragged=True)
    grid = FakeGrid(nodes_of(config, data, features, tmp_path / "nodes", 3))
    fresh = connect(grid, config, other, groups=2, say=lambda _: None)
    assert fresh.session.training != server.session.training
    assert apart(fresh.train(method, config), expected) < 1e-9
    files = list((tmp_path / "nodes").rglob("*.safetensors"))
    assert files
    assert all(len(list(f.parent.iterdir())) <= config.federation.rounds for f in files)


def test_state_directories_do_not_grow(tmp_path: Path) -> None:
    config = experiment(federation__rounds=12, output__checkpoint_every=2)
    method = untrained(config)
    server, _ = connected(config, tmp_path)
    server.train(method, config)
    per_user = [len(list(d.iterdir())) for d in (tmp_path / "nodes").glob("node-*/*") if d.is_dir()]
    assert len(per_user) == config.federation.clients
    assert max(per_user) <= 5  # the rounds that a restart can go back to, and one


def damaged(change: Any) -> Tamper:
    """Node 2's uploads are changed."""

    def tamper(node: int, reply: Message) -> Message | None:
        if node != 2 or reply.metadata.message_type != "train":
            return reply
        return change(reply)

    return tamper


def scaled(factor: float) -> Any:
    def change(reply: Message) -> Message:
        record = reply.content["arrays"]
        for name, array in list(record.items()):
            if name.startswith("theta."):
                with np.errstate(invalid="ignore"):
                    record[name] = type(array)(array.numpy() * factor)
        return reply

    return change


def renamed(reply: Message) -> Message:
    reply.content["arrays"]["log_pi"] = reply.content["arrays"]["counts"]
    return reply


def reshaped(reply: Message) -> Message:
    array = reply.content["arrays"]["means"]
    reply.content["arrays"]["means"] = type(array)(array.numpy()[:, :2].copy())
    return reply


def widened(reply: Message) -> Message:
    array = reply.content["arrays"]["means"]
    reply.content["arrays"]["means"] = type(array)(array.numpy().astype("float32"))
    return reply


def truncated(reply: Message) -> Message:
    array = reply.content["arrays"]["means"]
    reply.content["arrays"]["means"] = type(array)(array.dtype, array.shape, array.stype, array.data[:-4])
    return reply


def stranger(reply: Message) -> Message:
    users = list(reply.content["reply"]["users"])
    reply.content["reply"]["users"] = ["somebody-else", *users[1:]]
    return reply


def forged(reply: Message) -> Message:
    array = reply.content["arrays"]["means"]
    reply.content["arrays"]["means"] = type(array)(array.numpy() * 0 + 40)
    return reply


def boastful(reply: Message) -> Message:
    array = reply.content["arrays"]["counts"]
    reply.content["arrays"]["counts"] = type(array)(array.numpy() * 1000)
    return reply


def late(reply: Message) -> Message:
    reply.content["reply"]["round"] -= 1
    return reply


def foreign(reply: Message) -> Message:
    reply.content["reply"]["training"] = "of last week"
    return reply


FAULTS = {
    "not a number": (scaled(float("nan")), "rejected"),
    "infinite": (scaled(float("inf")), "rejected"),
    "a huge norm": (scaled(1e9), "rejected"),
    "an undeclared array": (renamed, "rejected"),
    "a wrong shape": (reshaped, "rejected"),
    "a wrong dtype": (widened, "rejected"),
    "too few bytes": (truncated, "rejected"),
    "somebody else's upload": (stranger, "rejected"),
    "more examples than in round 0": (boastful, "rejected"),
    "another round's upload": (late, "rejected"),
    "another training's upload": (foreign, "rejected"),
    "silence": (lambda reply: None, "silent"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_round_goes_on_without_an_unsound_client(fault: str, tmp_path: Path) -> None:
    change, kind = FAULTS[fault]
    config = experiment(federation__rounds=2)
    method = untrained(config)
    server, _ = connected(config, tmp_path, tamper=damaged(change))
    state = server.train(method, config)
    assert state.server.round == config.federation.rounds
    assert all(torch.isfinite(v).all() for v in state.server.theta.values())
    assert server.faults.counts.keys() == {kind}
    entries = [json.loads(line) for line in (tmp_path / "network" / "faults.jsonl").read_text().splitlines()]
    mine = {f"{i:08d}" for i in range(1, config.federation.clients, 3)}
    assert {e["node"] for e in entries} == {2}
    assert {u for e in entries for u in e["users"]} <= mine
    if kind == "rejected":
        assert all(e["users"] and e["reason"] for e in entries)
    never = [int(u) for u in mine]
    assert bool((state.server.counts[never] == 0).all())


def test_an_old_answer_that_comes_again_is_rejected(tmp_path: Path) -> None:
    """A node that goes back to an old state and replays what it sent in its first round."""
    config, first = experiment(federation__rounds=6), dict[str, Any]()
    method = untrained(config)

    def replay(reply: Message) -> Message:
        for name in ("reply", "arrays"):
            reply.content[name] = first.setdefault(name, copy.deepcopy(reply.content[name]))
        return reply

    server, _ = connected(config, tmp_path, tamper=damaged(replay))
    server.train(method, config)
    entries = [json.loads(line) for line in (tmp_path / "network" / "faults.jsonl").read_text().splitlines()]
    assert {e["reason"].partition(" than")[0] for e in entries} == {"computed for another round"}
    assert {e["node"] for e in entries} == {2}


def test_a_user_with_more_pairs_than_in_round_0_is_left_out(tmp_path: Path) -> None:
    config = experiment()
    method = untrained(config)
    server, _ = connected(config, tmp_path)
    server.session = replace(server.session, pairs=(1, *server.session.pairs[1:]))
    server.nodes.held = {}
    server.nodes._asked = {}
    server.train(method, config)
    entries = [json.loads(line) for line in (tmp_path / "network" / "faults.jsonl").read_text().splitlines()]
    assert entries[0]["users"] == ["00000000"]
    assert "more pairs than in round 0" in entries[0]["reason"]
    assert "00000000" not in {u for held in server.nodes.held.values() for u in held}


def test_the_outlier_rules_hold_over_a_network_too(tmp_path: Path) -> None:
    config = experiment(defence__posterior_outlier=8.0)
    method = untrained(config)
    server, _ = connected(config, tmp_path, tamper=damaged(forged))
    server.train(method, config)
    assert server.faults.counts.keys() == {"rejected"}
    assert "deviations from the median" in (tmp_path / "network" / "faults.jsonl").read_text()


def test_too_few_sound_uploads_end_the_training(tmp_path: Path) -> None:
    config = experiment(network__min_clients=4, network__retries=2)
    method = untrained(config)
    server, grid = connected(config, tmp_path, tamper=damaged(lambda reply: None))
    with pytest.raises(UserError, match=r"sound uploads after 3 attempts"):
        server.train(method, config)
    assert server.faults.counts["repeated"] == 2
    # Who had sent a sound upload was not asked again.
    asked = [node for node, kind in grid.log if kind == "train"]
    assert asked.count(1) == 1
    assert asked.count(2) == 3


def test_a_lost_answer_is_asked_for_again_without_changing_the_result(tmp_path: Path) -> None:
    config = experiment(network__min_clients=4)
    method, expected = reference(config)
    lost = iter([True, False] * 100)
    server, _ = connected(config, tmp_path, tamper=damaged(lambda reply: None if next(lost) else reply))
    assert apart(server.train(method, config), expected) < 1e-9
    assert server.faults.counts["repeated"] > 0


def test_a_node_that_leaves_and_comes_back(tmp_path: Path) -> None:
    config = experiment(federation__rounds=9)
    method = untrained(config)
    server, grid = connected(config, tmp_path)

    def callback(_: Any, state: TrainingState) -> None:
        grid.absent = {2} if 3 <= state.server.round < 6 else set()

    state = server.train(method, config, callback=callback)
    assert state.server.round == 9
    assert server.faults.counts.keys() == {"unreachable"}
    assert len(server.nodes.held) == 3


def test_a_node_may_leave_and_come_back_more_often_than_a_silent_one_is_asked(tmp_path: Path) -> None:
    times = ATTEMPTS + 1
    config = experiment(federation__rounds=2 * times + 1)
    method = untrained(config)
    server, grid = connected(config, tmp_path)

    def callback(_: Any, state: TrainingState) -> None:
        grid.absent = {2} if state.server.round % 2 else set()

    server.train(method, config, callback=callback)
    assert grid.log.count((2, "query.enroll")) == 1 + times
    assert len(server.nodes.held) == 3


def test_too_few_nodes_and_unsupported_methods_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"network.wait: 3 nodes with 6 users"):
        connected(experiment(network__min_nodes=4), tmp_path / "a")
    for name in (*REFUSED, "local", "oracle"):
        with pytest.raises(UserError, match=r"does not train over a network"):
            connected(experiment(name), tmp_path / "b")


def test_a_user_at_two_nodes_counts_once(tmp_path: Path) -> None:
    config = experiment()
    data, features = preferences(config, ragged=True)
    nodes = nodes_of(config, data, features, tmp_path, 3)
    twin = replace(nodes[0], state_dir=tmp_path / "twin")
    server = connect(FakeGrid([*nodes, twin]), config, tmp_path, groups=2, say=lambda _: None)
    assert server.faults.counts == {"claimed": 2}
    method, expected = reference(config)
    assert apart(server.train(method, config), expected) < 1e-9


def test_nodes_with_another_model_say_so(tmp_path: Path) -> None:
    config = experiment()
    data, features = preferences(config, ragged=True)
    nodes = nodes_of(config, data, features, tmp_path, 3)
    wider = config.model_copy(update={"model": config.model.model_copy(update={"hidden_dim": 13})})
    nodes[1] = replace(nodes[1], config=wider)
    server = connect(FakeGrid(nodes), config, tmp_path, groups=2, say=lambda _: None)
    method = untrained(config)
    server.train(method, config)
    assert server.faults.counts.keys() == {"failed"}
    assert "another model" in (tmp_path / "network" / "faults.jsonl").read_text()


def test_accuracy_of_the_clients_own_pairs(tmp_path: Path) -> None:
    config = experiment(federation__rounds=8, federation__server_learning_rate=0.05)
    method = untrained(config)
    server, _ = connected(config, tmp_path)
    accuracy = server.evaluate(method, server.train(method, config))
    assert accuracy.keys() == {"amortised", "mixture"}
    state = rounds.train(method, config, world(config, ragged=True).clients)
    expected = score_predictions(*predicted(method, config, state)).values["accuracy"]
    assert accuracy["mixture"] == pytest.approx(expected, abs=1e-6)
