"""FedPDPO: heads stay at home, new users get one from their context, and the representation is worth sharing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from fedvpa.evaluation.experiment import MethodRun, Prepared, prepare, run_method
from fedvpa.federation import rounds
from fedvpa.methods.fedpdpo import HEAD
from fedvpa.variational.selector import difference, score
from toy import method_of, preferences, settings, world

LEARNABLE = {
    "federation__clients": 12,
    "federation__sampled_clients": 6,
    "federation__rounds": 30,
    "federation__local_steps": 5,
    "federation__local_optimizer": "sgd",
    "federation__learning_rate": 0.1,
    "federation__server_optimizer": "adam",
    "federation__server_learning_rate": 0.01,
    "federation__dtype": "float32",
}


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return world(settings(**LEARNABLE))


@pytest.fixture(scope="module")
def run(prepared: Prepared) -> MethodRun:
    return run_method(prepared, "fedpdpo")


def rows_of(run: MethodRun, **where: Any) -> list[dict[str, Any]]:
    return [r for r in run.rows if all(r[k] == v for k, v in where.items())]


def test_heads_never_leave_their_clients() -> None:
    config = settings(federation__local_optimizer="sgd", federation__learning_rate=0.1)
    small = world(config)
    method = method_of(small, "fedpdpo")
    state = rounds.start(method, config, 6)
    assert HEAD not in state.server.theta
    ids = torch.tensor([0, 1, 2])
    for _ in range(2):
        upload, private = rounds.run_clients(method, config, small.clients, state, ids)
        state = rounds.TrainingState(state.server, state.optimizer, private)
    assert set(upload.theta) == {"features.weight", "features.bias", "selector.alpha"}
    assert upload.means.numel() == 0
    assert set(upload.metrics) == {"loss", "reconstruction"}
    assert private[HEAD].shape == (6, 12)
    assert (private[HEAD][:3].norm(dim=-1) > 0).all()
    assert (private[HEAD][3:] == 0).all()
    assert not private[HEAD].requires_grad


def test_the_representation_does_not_depend_on_other_clients_heads() -> None:
    config = settings()
    small = world(config)
    method = method_of(small, "fedpdpo")
    state = rounds.start(method, config, 6)
    ids = torch.tensor([0, 1])
    private = {HEAD: torch.randn(6, 12, generator=torch.Generator().manual_seed(0)).double()}
    mine = rounds.TrainingState(state.server, state.optimizer, private)
    others = rounds.TrainingState(state.server, state.optimizer, {HEAD: private[HEAD].clone()})
    others.private[HEAD][2:] = 0
    one, two = (rounds.run_clients(method, config, small.clients, s, ids)[0] for s in (mine, others))
    assert all((one.theta[k] == two.theta[k]).all() for k in one.theta)


def test_a_seen_user_is_predicted_with_its_own_head(prepared: Prepared, run: MethodRun) -> None:
    seen = rows_of(run, population="seen")
    assert len(seen) == 6  # one per context size, all the same
    assert len({r["accuracy"] for r in seen}) == 1
    assert seen[0]["accuracy"] > 0.8
    assert {r["flip_rate"] for r in seen} == {None}
    assert all(r["switch_gap"] > 0.6 for r in seen)
    theta, heads = run.training.server.theta, run.training.private[HEAD]
    panel = prepared.panels["seen"]
    x, _ = prepared.pool.rows(panel.query[3])
    expected = torch.sigmoid(score({**theta, HEAD: heads[3]}, difference(theta, x), None))
    own = run.predictor.own(run.training.private, torch.arange(12))
    torch.testing.assert_close(own.predict(own.infer(panel.context(2)), panel.query)[3], expected)


def test_an_unseen_users_head_is_fitted_to_its_context(run: MethodRun) -> None:
    unseen = {r["context_size"]: r for r in rows_of(run, population="unseen")}
    assert sorted(unseen) == [0, 1, 2, 4, 8, 16]
    assert {r["inference"] for r in unseen.values()} == {"none"}
    assert unseen[0]["accuracy"] == 0.5
    assert unseen[0]["log_loss"] == pytest.approx(math.log(2))
    assert unseen[8]["accuracy"] > unseen[1]["accuracy"]
    assert unseen[8]["accuracy"] > 0.7
    assert unseen[8]["flip_rate"] == 1


def test_sharing_the_representation_helps(prepared: Prepared, run: MethodRun) -> None:
    """Two opposite rules need one direction of six: who knows it needs fewer labels than `local`."""
    alone = run_method(prepared, "local")
    for size in (2, 4):
        shared, own = (rows_of(r, population="unseen", context_size=size)[0]["accuracy"] for r in (run, alone))
        assert shared > own + 0.03


def test_the_decay_is_chosen_on_validation_clients(prepared: Prepared, run: MethodRun) -> None:
    predictor = run.predictor
    chosen = predictor.decay(4)
    assert [c.client_id for c in predictor.validation] == [c.client_id for c in prepared.data.clients["validation"]]
    hits = {c: predictor._validation_accuracy(4, c) for c in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)}
    assert hits[chosen] == max(hits.values())


def test_base_choice_logits_serve_whom_nothing_is_known_of() -> None:
    config = settings(**LEARNABLE)
    data, features = preferences(config, groups=1)
    useful = data.group_labels[0].float() * 2
    found = run_method(prepare(config, data, dataclasses.replace(features, base_logit=useful)), "fedpdpo")
    assert found.training.server.theta["selector.alpha"] > 0
    assert rows_of(found, population="unseen", context_size=0)[0]["accuracy"] > 0.95
    assert rows_of(found, population="seen", context_size=0)[0]["accuracy"] > 0.8
