"""The upper bound with true groups as clusters: it gets them, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedvpa.config import METHODS
from fedvpa.errors import UserError
from fedvpa.evaluation.experiment import run_method
from fedvpa.federation import rounds
from toy import method_of, settings, world

NAME = "fedvpa-gp+labels"


def test_no_other_method_is_told_the_groups() -> None:
    prepared = world(settings())
    told = {}
    for name in METHODS:
        setup = method_of(prepared, name).setup
        told[name] = setup.groups
        assert {c.group for c in setup.validation} == {None}
    groups = told.pop(NAME)
    assert groups.tolist() == [c.group for c in prepared.data.clients["seen"]]
    assert set(told.values()) == {None}


def test_its_clusters_are_the_true_groups_whatever_the_posteriors_are() -> None:
    config = settings(federation__rounds=6, federation__sampled_clients=6)
    prepared = world(config, groups=3)
    method = method_of(prepared, NAME)
    states: list[Any] = []
    rounds.train(method, config, prepared.clients, callback=lambda r, s: states.append(s.server))
    assert [s.clustered for s in states] == [False, False, True, True, True, True]  # it begins when clustering would
    assert (states[1].labels == -1).all()
    truth = torch.tensor([0, 1, 2, 0, 1, 2])
    for server in states[2:]:
        assert torch.equal(server.labels, truth)
        for k in range(3):
            torch.testing.assert_close(server.centroids[k], server.means[truth == k].mean(0))
    direction = torch.nn.functional.normalize(states[2].centroids, dim=-1)
    torch.testing.assert_close(states[2].theta["prototypes"], config.method.kappa * direction)


def test_it_waits_until_every_group_is_known() -> None:
    config = settings(method__ortho_start=0.0, federation__sampled_clients=1, federation__rounds=4)
    prepared = world(config)
    method = method_of(prepared, NAME)
    states: list[Any] = []
    rounds.train(method, config, prepared.clients, callback=lambda r, s: states.append(s.server))
    assert not states[0].clustered
    for server in states:
        assert server.clustered == (len({i % 2 for i in server.counts.nonzero().flatten().tolist()}) == 2)
        assert server.centroids.isfinite().all()


def test_purity_is_one_and_users_are_inferred_from_contexts_as_ever() -> None:
    found = run_method(world(settings(federation__sampled_clients=6)), NAME)
    assert {r["cluster_purity"] for r in found.rows} == {1.0}
    assert found.predictor.inferences == ("amortised", "mixture", "refined")
    panel = world(settings(federation__sampled_clients=6)).panels["unseen"]
    one, other = (
        found.predictor.infer(panel.context(4), "mixture", groups) for groups in (panel.groups, 1 - panel.groups)
    )
    assert torch.equal(one.z, other.z)
    assert torch.equal(one.log_weights, other.log_weights)


def test_it_says_so_where_groups_are_not_known_or_do_not_fit() -> None:
    with pytest.raises(UserError, match="needs true groups"):
        run_method(world(settings(), known=False), NAME)
    with pytest.raises(UserError, match=r"3 prototypes or clients for 2 true groups.*leave method.prototypes empty"):
        run_method(world(settings(method__prototypes=3)), NAME)
