"""FedBiscuit: who trains which selector when, how clients are grouped, and how selectors vote."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvpa.errors import UserError
from fedvpa.evaluation.experiment import MethodRun, run_method, upload_bytes
from fedvpa.federation import rounds
from fedvpa.methods.base import Pool
from fedvpa.methods.fedbiscuit import VotePredictor
from fedvpa.methods.fedbt import CommonPredictor
from fedvpa.preferences.seeding import generator
from fedvpa.variational.selector import Sizes, init_theta
from toy import method_of, settings, world

LEARNABLE = {
    "federation__clients": 12,
    "federation__sampled_clients": 6,
    "federation__rounds": 40,
    "federation__local_steps": 5,
    "federation__learning_rate": 0.02,
    "federation__server_learning_rate": 1.0,
    "federation__server_decay": 0.0,
    "method__selectors": 2,
    "method__selector_warmup": 0.1,
    "method__regroup_every": 4,
}


def states_of(**overrides: Any) -> tuple[Any, list[rounds.TrainingState], list[rounds.RoundReport]]:
    config = settings(**overrides)
    prepared = world(config, ragged=True)
    method = method_of(prepared, "fedbiscuit")
    states, reports = [rounds.start(method, config, len(prepared.clients))], []

    def keep(report: rounds.RoundReport, state: rounds.TrainingState) -> None:
        states.append(state)
        reports.append(report)

    rounds.train(method, config, prepared.clients, callback=keep)
    return method, states, reports


def moved(before: rounds.TrainingState, after: rounds.TrainingState) -> set[int]:
    """The selectors whose parameters a round changed."""
    changed = {k for k, v in after.server.theta.items() if (v != before.server.theta[k]).any()}
    return {int(k.split("/")[0]) for k in changed}


@pytest.mark.parametrize("optimizer", ["average", "adam"])
def test_selectors_are_warmed_up_in_turn_and_then_train_in_groups(optimizer: str) -> None:
    """Three selectors, two rounds each: the others stand still, also under a server with momentum."""
    method, states, _ = states_of(
        federation__rounds=10,
        federation__server_optimizer=optimizer,
        method__selector_warmup=0.2,
        method__regroup_every=2,
    )
    assert [moved(a, b) for a, b in pairwise(states[:7])] == [{0}, {0}, {1}, {1}, {2}, {2}]
    assert (states[6].server.labels == -1).all()
    config = method.config
    for round in range(6, 10):
        labels = states[round + 1].server.labels
        assert labels.bincount(minlength=3).tolist() == [2, 2, 2]
        sampled = rounds.sample_clients(config, 6, round)
        assert moved(states[round], states[round + 1]) == set(labels[sampled].tolist())
    assert torch.equal(states[7].server.labels, states[8].server.labels)  # no survey before the 8th round


def test_each_selector_starts_elsewhere_and_has_its_own_optimiser() -> None:
    method, states, _ = states_of(
        federation__rounds=4, federation__server_optimizer="adam", method__selector_warmup=0.25
    )
    first = [states[0].server.theta[f"{k}/features.weight"] for k in range(3)]
    assert (first[0] != first[1]).any()
    assert (first[1] != first[2]).any()
    assert [float(states[3].optimizer[f"{k}/steps"]) for k in range(3)] == [1, 1, 1]
    assert method.models == 3


@given(st.integers(2, 5), st.integers(0, 10**6))
@hypothesis_settings(max_examples=20, deadline=None)
def test_groups_are_balanced_and_no_exchange_of_two_clients_is_cheaper(selectors: int, seed: int) -> None:
    prepared = world(settings(method__selectors=selectors, method__selector_warmup=0.1))
    method = method_of(prepared, "fedbiscuit")
    state = method.init_server(generator(0))
    losses = torch.rand(6, selectors, generator=generator(seed)).double()
    labels = method.regroup(state, losses).labels
    sizes = labels.bincount(minlength=selectors)
    assert sizes.max() - sizes.min() <= 1
    own = losses[torch.arange(6), labels]
    exchanged = losses[:, labels] + losses[:, labels].T
    assert (exchanged >= own + own.unsqueeze(-1) - 1e-12).all()


def test_held_out_pairs_measure_and_do_not_train() -> None:
    prepared = world(settings(method__selector_holdout=0.3), ragged=True)
    method = method_of(prepared, "fedbiscuit")
    ids = torch.tensor([0, 1, 3])  # 10, 7 and 2 pairs
    batch, state = prepared.clients.batch(ids), method.init_server(generator(0))
    held = method.held_out(batch)
    assert held.sum(-1).tolist() == [3, 2, 0]
    assert not (held & ~batch.mask).any()
    theta = {k: v + 0.3 for k, v in state.theta.items()}  # heads that are not 0
    download = method.broadcast(state).__class__(**{**vars(method.broadcast(state)), "theta": theta})
    noise = rounds.round_noise(method, prepared.config, prepared.clients, ids, 0)
    changed = batch._replace(y=torch.where(held, -batch.y, batch.y))
    one, two = (method.client_update(download, {}, b, noise)[0] for b in (batch, changed))
    assert all((one.theta[k] == two.theta[k]).all() for k in one.theta)
    assert one.counts.tolist() == [7, 5, 2]
    report, other = (method.client_report(download, b) for b in (batch, changed))
    assert report.shape == (3, 3)
    assert (report[:2] != other[:2]).all()
    assert (report[2] == other[2]).all()
    trained = batch._replace(y=torch.where(held, batch.y, -batch.y))
    assert (method.client_report(download, trained)[:2] == report[:2]).all()


def test_what_a_round_costs() -> None:
    """A client sends one selector; in a round with a survey also its U losses, and it receives all U selectors."""
    method, states, reports = states_of(
        federation__rounds=8, method__selectors=2, method__selector_warmup=0.25, method__regroup_every=2
    )
    one = sum(v.numel() * v.element_size() for k, v in states[0].server.theta.items() if k.startswith("0/"))
    plain = one + 8 + 4 * len(method.metric_names)
    assert [r.bytes_up - plain for r in reports] == [0, 0, 0, 0, 2 * 8, 0, 2 * 8, 0]
    assert [(r.bytes_down - 8) // one for r in reports] == [1, 1, 1, 1, 2, 1, 2, 1]
    assert upload_bytes(method, states[-1]) == max(r.bytes_up for r in reports)
    assert method.download_bytes(method.broadcast(states[-1].server)) == max(r.bytes_down for r in reports)


def vote(*heads: float) -> torch.Tensor:
    """p of one pair whose responses differ, under selectors with these heads."""
    pool = Pool.of_pairs(torch.tensor([[[1.0, 0.5], [-1.0, 0.5]]]))
    theta = init_theta(Sizes(2, 3, 0, 0), generator(0))
    side = 1 if CommonPredictor({**theta, "selector.common": torch.ones(3)}, pool).p > 0.5 else -1
    return VotePredictor([{**theta, "selector.common": torch.full((3,), side * h)} for h in heads], pool).p[0]


def test_the_majority_decides_whatever_the_others_confidence() -> None:
    assert vote(0.01, 0.01, -50.0) > 0.5
    assert vote(-0.01, -0.01, 50.0) < 0.5
    assert vote(0.01, 0.01, 0.01, -50.0, -50.0) > 0.5


def test_the_mean_probability_decides_ties_only() -> None:
    assert vote(2.0, -1.0) > 0.5
    assert vote(1.0, -2.0) < 0.5
    assert vote(0.0, 0.0) == 0.5
    certain = vote(50.0, 50.0, 50.0)
    assert 0.99 < certain <= 1


def fitted(groups: int, **overrides: Any) -> MethodRun:
    return run_method(world(settings(**LEARNABLE | overrides), groups=groups), "fedbiscuit")


def test_opposite_groups_find_each_their_selector_and_the_vote_serves_neither() -> None:
    run = fitted(2)
    labels = run.training.server.labels  # clients take turns between the groups
    assert labels[::2].unique().numel() == labels[1::2].unique().numel() == 1
    assert labels[0] != labels[1]
    assert [(r["population"], r["inference"], r["context_size"], r["default"]) for r in run.rows] == [
        ("seen", "none", None, True),
        ("unseen", "none", None, True),
    ]
    for row in run.rows:
        assert abs(row["accuracy"] - 0.5) < 0.02  # everybody gets the same answers
        assert row["switch_gap"] is None
        assert row["flip_rate"] is None
        assert 0.5 < row["log_loss"] < 2


@pytest.mark.parametrize("selectors", [3, 5])
def test_with_one_rule_the_vote_finds_it(selectors: int) -> None:
    run = fitted(1, method__selectors=selectors)
    assert min(r["accuracy"] for r in run.rows) > 0.85
    assert run.method.models == selectors


def test_a_warm_up_longer_than_the_training_is_refused() -> None:
    with pytest.raises(UserError, match=r"method.selectors \(5\) times method.selector_warmup"):
        settings(method__selectors=5, method__selector_warmup=0.25)
