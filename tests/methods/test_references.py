"""The reference methods on linear rules: what a model can reach when it knows the group, or one user only."""

from __future__ import annotations

import pytest
import torch

from fedvpa.errors import UserError
from fedvpa.evaluation.experiment import Prepared, run_method
from fedvpa.evaluation.protocol import measure
from fedvpa.federation import rounds
from fedvpa.methods.base import Context, Pool
from fedvpa.methods.oracle import split_pairs
from fedvpa.methods.supervised import Labelled, accuracy, linear_bradley_terry, linear_scores
from toy import method_of, settings, world


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return world(settings(federation__dtype="float32"), groups=4)


def accuracy_of(prepared: Prepared, name: str, population: str = "unseen", size: int = 10) -> float:
    predictor = method_of(prepared, name).fit(prepared.data, prepared.pool)
    return measure(predictor, prepared.panels[population], size, "none", True).values["accuracy"]


def test_oracle_solves_a_linear_rule(prepared: Prepared) -> None:
    assert accuracy_of(prepared, "oracle") > 0.93


def test_oracle_of_clients_knows_their_pairs_only() -> None:
    few = world(settings(federation__dtype="float32", federation__clients=4, data__pairs_per_client=6), groups=4)
    by_clients, by_pool = accuracy_of(few, "oracle-clients"), accuracy_of(few, "oracle")
    assert 0.55 < by_clients < by_pool - 0.05
    held = method_of(few, "oracle-clients").training_pairs(few.data, 1)
    mine = few.data.clients["seen"][1].train
    assert held.index.tolist() == mine.index.tolist()
    assert held.y.tolist() == mine.y.tolist()


def test_oracle_knows_a_users_group_and_flips_with_it(prepared: Prepared) -> None:
    predictor = method_of(prepared, "oracle").fit(prepared.data, prepared.pool)
    panel = prepared.panels["unseen"]
    values = measure(predictor, panel, 0, "none", True).values
    assert values["switch_gap"] > 0.8
    assert values["worst_group_accuracy"] > 0.85


def test_oracle_without_groups_says_so() -> None:
    blind = world(settings(), known=False)
    with pytest.raises(UserError, match="true groups"):
        method_of(blind, "oracle").fit(blind.data, blind.pool)


def test_split_pairs_are_those_of_the_split_that_the_group_labels(prepared: Prepared) -> None:
    found = split_pairs(prepared.data, 2, "validation")
    assert len(found.index) == 40
    assert {prepared.data.split[i] for i in found.index.tolist()} == {"validation"}
    assert (found.y == prepared.data.group_labels[2, found.index]).all()


def test_local_learns_from_its_own_pairs(prepared: Prepared) -> None:
    none, some = accuracy_of(prepared, "local", size=0), accuracy_of(prepared, "local", size=10)
    assert none == 0.5
    assert 0.6 < some < accuracy_of(prepared, "oracle")


def test_local_users_do_not_share_anything(prepared: Prepared) -> None:
    predictor = method_of(prepared, "local").fit(prepared.data, prepared.pool)
    context = prepared.panels["unseen"].context(6)
    together = predictor.infer(context)
    alone = predictor.infer(Context(*(t[2:3] for t in context)))
    torch.testing.assert_close(together[2:3], alone)


def test_linear_bradley_terry_separates_and_is_antisymmetric() -> None:
    x = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0))
    y = torch.where(x[:, 0, 0] > x[:, 1, 0], 1, -1)
    data = Labelled(torch.arange(40), y)
    w = linear_bradley_terry(Pool.of_pairs(x), data, 1.0)
    assert accuracy(linear_scores(Pool.of_pairs(x), w), data) > 0.95
    swapped = linear_bradley_terry(Pool.of_pairs(x.flip(1)), data._replace(y=-y), 1.0)
    torch.testing.assert_close(swapped, w)
    one_sided = linear_bradley_terry(Pool.of_pairs(x), Labelled(torch.arange(40)[y > 0], y[y > 0]), 1.0)
    assert one_sided[0] > 0


def test_fedbt_follows_the_majority_and_serves_nobody_in_particular() -> None:
    config = settings(
        federation__rounds=15,
        federation__sampled_clients=6,
        federation__server_learning_rate=1.0,
        federation__learning_rate=0.02,
        federation__local_steps=10,
    )
    one_rule = world(config, groups=1)
    run = run_method(one_rule, "fedbt")
    assert min(r["accuracy"] for r in run.rows) > 0.85
    divided = run_method(world(config, groups=2), "fedbt")
    for row in divided.rows:
        assert abs(row["accuracy"] - 0.5) < 0.02  # right for one group is wrong for the other
        assert row["switch_gap"] is None
        assert row["inference"] == "none"
        assert row["context_size"] is None


def test_fedbt_with_few_pairs_per_step_learns_too() -> None:
    config = settings(federation__rounds=4, federation__batch_pairs=4, federation__learning_rate=0.02)
    prepared = world(config, groups=1, ragged=True)
    losses: list[float] = []
    rounds.train(
        method_of(prepared, "fedbt"), config, prepared.clients, callback=lambda r, s: losses.append(r.metrics["loss"])
    )
    assert losses[-1] < losses[0]


def test_central_vpl_trains_one_theta_on_everybody() -> None:
    config = settings(
        federation__rounds=3,
        federation__local_steps=20,
        federation__learning_rate=0.01,
        federation__server_learning_rate=1.0,
        federation__server_decay=0.0,
    )
    prepared = world(config, ragged=True)
    method = method_of(prepared, "central-vpl")
    reports: list[rounds.RoundReport] = []
    state = rounds.train(method, config, prepared.clients, callback=lambda r, s: reports.append(r))
    assert reports[-1].metrics["reconstruction"] < reports[0].metrics["reconstruction"] + 0.05
    assert (reports[0].bytes_up, reports[0].bytes_down) == (0, 0)
    assert (state.server.counts == prepared.clients.counts).all()
    values = measure(method.predictor(state.server, prepared.pool), prepared.panels["unseen"], 8, "amortised", True)
    assert values.values["accuracy"] > 0.7
    again = rounds.train(method, config, prepared.clients)
    assert all((again.server.theta[k] == v).all() for k, v in state.server.theta.items())
