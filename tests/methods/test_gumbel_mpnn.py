"""gumbel-mpnn: edges between planted groups are dropped, two hops are what they say, one hop is fedvpa-gp's prior."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedvpa.evaluation.experiment import run_method
from fedvpa.federation import rounds
from fedvpa.methods.base import Download
from fedvpa.methods.gumbel_mpnn import agreement, two_hops
from fedvpa.preferences.seeding import generator
from toy import method_of, settings, world

IDS = torch.arange(6)


def planted(**overrides: Any) -> tuple[Any, Any, Download, torch.Tensor]:
    """gumbel-mpnn and fedvpa-gp, and what six clients download of two groups far apart; the last uploaded nothing."""
    config = settings(method__prior_start=0, **overrides)
    prepared = world(config)
    ours, plain = (method_of(prepared, name) for name in ("gumbel-mpnn", "fedvpa-gp"))
    state = rounds.start(ours, config, 6).server
    g = generator(0, "planted")
    centre = torch.tensor([2.0, -2.0]).repeat(3).unsqueeze(1)
    state = replace(
        state,
        means=centre + 0.1 * torch.randn(6, 4, generator=g).double(),
        variances=0.2 + 0.1 * torch.rand(6, 4, generator=g).double(),
        counts=torch.tensor([10, 4, 7, 10, 3, 0]),
    )
    log_pi = torch.randn(6, 6, generator=g).double()
    return ours, plain, ours.broadcast(state), log_pi


def test_edges_across_the_planted_groups_are_dropped_and_those_inside_kept() -> None:
    method, _, download, _ = planted()
    same = (IDS.unsqueeze(1) - IDS) % 2 == 0
    there = (download.counts > 0) & (download.counts > 0).unsqueeze(1) & ~torch.eye(6, dtype=torch.bool)
    edges = method.edges(download, noisy=False)
    assert (edges[there & same] > 0.9).all()
    assert (edges[there & ~same] < 0.1).all()
    noisy = method.edges(download, noisy=True)
    assert (noisy != edges)[there].all()
    torch.testing.assert_close(noisy, noisy.T)
    assert (method.edges(replace(download, round=1), noisy=True) != noisy)[there].all()


def test_the_prior_has_more_weight_on_the_own_group_than_that_of_one_hop() -> None:
    ours, plain, download, log_pi = planted()
    (_, two), (_, one) = (m.prior(0 * log_pi, IDS, None, download) for m in (ours, plain))
    for i in range(5):
        own = (IDS - i) % 2 == 0
        assert two[i, own].exp().sum() > one[i, own].exp().sum() + 0.3


@pytest.mark.parametrize("components", [0, 3])
def test_one_hop_over_equal_edges_is_the_prior_of_fedvpa_gp(components: int) -> None:
    flat = {"method__second_hop": 0.0, "method__edge_sharpness": 0.0, "method__prior_components": components}
    ours, plain, download, log_pi = planted(**flat)
    log_pi = log_pi[:, : ours.components]
    (mixture, log_w), (expected, log_e) = (m.prior(log_pi, IDS, None, download) for m in (ours, plain))
    torch.testing.assert_close(log_w, log_e)
    for found, wanted in zip(mixture, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_two_hops_by_hand() -> None:
    """0 knows 1 and 2; 1 goes on to 2 and 3 (and back, which is left out), 2 to 1 alone, 3 has nobody else."""
    none = float("-inf")
    log_w = torch.tensor([[none, 0.75, 0.25, 1e-30]]).log()
    edges = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0]]).double()
    counts = torch.tensor([2, 4, 1, 1])
    log_w = torch.where(log_w.isnan(), none, log_w).double()
    w = two_hops(log_w, torch.ones(1, 4).double(), edges, counts, 1.0).exp()
    # From 1 with 3/4: to 0 2/4, to 2 and 3 1/4 each; from 2 with 1/4: all to 1. What comes back to 0, 3/8, stays put.
    torch.testing.assert_close(w, torch.tensor([[0, 8 + 9, 6 + 3, 6]]).double() / 32)
    half = two_hops(log_w, torch.ones(1, 4).double(), edges, counts, 0.5).exp()
    torch.testing.assert_close(half, (w + torch.tensor([[0, 0.75, 0.25, 0]]).double()) / 2)


def test_own_and_absent_posteriors_have_no_weight_and_nobody_known_is_the_standard_normal() -> None:
    method, _, download, log_pi = planted()
    _, log_w = method.prior(log_pi, IDS, torch.zeros_like(log_pi), download)
    assert torch.isneginf(log_w.diagonal()).all()
    assert torch.isneginf(log_w[:, 5]).all()
    torch.testing.assert_close(log_w.exp().sum(1), torch.ones(6).double())
    empty = replace(download, counts=torch.zeros(6, dtype=torch.int64))
    mixture, _ = method.prior(log_pi, IDS, None, empty)
    assert (mixture.log_weights[:, -1] == 0).all()
    assert (agreement(download.means, download.variances, empty.counts > 0) == 0).all()


def test_private_weights_learn_through_both_hops() -> None:
    method, _, download, log_pi = planted()
    log_pi = log_pi.clone().requires_grad_()
    mixture, _ = method.prior(log_pi, IDS, torch.zeros_like(log_pi), download)
    mixture.log_weights[0, 2].backward()
    assert (log_pi.grad[0, 1:5] != 0).all()
    assert (log_pi.grad[1:] == 0).all()


@pytest.mark.parametrize("components", [0, 3])
def test_it_trains_and_is_measured(components: int) -> None:
    config = settings(method__prior_start=0.25, method__ortho_start=0.25, method__prior_components=components)
    run = run_method(world(config), "gumbel-mpnn")
    assert all(0 <= r["accuracy"] <= 1 for r in run.rows)
    assert any(r["effective_components"] > 1 for r in run.rows)
