"""The compressed prior: exact moments, numbers that keep their meaning, and nothing of a client in its own prior."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvpa.evaluation import diagnostics
from fedvpa.federation import checkpoint, rounds
from fedvpa.methods.components import Components, compress, empty, without_own
from fedvpa.variational import prior
from toy import method_of, settings, world


def posteriors(clients: int, dim: int, seed: int, unknown: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(clients, dim, generator=g).double()
    counts = torch.randint(1, 20, (clients,), generator=g)
    counts[torch.randperm(clients, generator=g)[:unknown]] = 0
    return means, torch.rand(clients, dim, generator=g).double() + 0.05, counts


def moments(means: torch.Tensor, variances: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    w = (counts.double() / counts.sum()).unsqueeze(-1)
    mean = (w * means).sum(0)
    return mean, (w * (variances + means**2)).sum(0) - mean**2


@given(st.integers(3, 40), st.integers(1, 8), st.integers(0, 1000))
@hypothesis_settings(max_examples=25, deadline=None)
def test_the_mixture_has_the_moments_of_the_posteriors(clients: int, size: int, seed: int) -> None:
    means, variances, counts = posteriors(clients, 3, seed, unknown=1)
    found = compress(means, variances, counts, empty(size, clients, 3, torch.float64), 0)
    assert found.counts.sum() == counts.sum()
    assert ((found.member >= 0) == (counts > 0)).all()
    for exact, kept in zip(moments(means, variances, counts), moments(*found[:3]), strict=True):
        torch.testing.assert_close(kept, exact)


@given(st.integers(3, 30), st.integers(1, 6), st.integers(0, 1000))
@hypothesis_settings(max_examples=25, deadline=None)
def test_without_own_equals_the_moments_of_the_other_members(clients: int, size: int, seed: int) -> None:
    means, variances, counts = posteriors(clients, 3, seed, unknown=1)
    found = compress(means, variances, counts, empty(size, clients, 3, torch.float64), 0)
    own = without_own(means, variances, counts, found)
    for i in range(clients):
        others = (found.member == found.member[i]) & (torch.arange(clients) != i) & (found.member >= 0)
        if found.member[i] < 0:
            assert own.component[i] == -1
        elif not others.any():
            assert own.counts[i] == 0
        else:
            assert own.counts[i] == counts[others].sum()
            mean, variance = moments(means[others], variances[others], counts[others])
            torch.testing.assert_close(own.means[i], mean)
            torch.testing.assert_close(own.variances[i], variance)


@pytest.mark.parametrize("seed", range(3))
def test_components_keep_their_numbers_while_posteriors_drift(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    centres = 6 * torch.randn(5, 4, generator=g).double()
    truth = torch.arange(60) % 5
    variances, counts = torch.full((60, 4), 0.1).double(), torch.full((60,), 16)
    last, first = empty(5, 60, 4, torch.float64), None
    for round in range(6):
        means = centres[truth] + 0.2 * round + 0.1 * torch.randn(60, 4, generator=g)
        counts[:] = 16
        counts[torch.randperm(60, generator=g)[:10]] = 0  # not always the same clients are known
        last = compress(means, variances, counts, last, round)
        number = torch.stack([last.member[(truth == k) & (counts > 0)].unique().squeeze() for k in range(5)])
        first = number if first is None else first
        assert (number == first).all()
    vanished = counts * (truth != 2)  # a component without members comes back under its number
    last = compress(means, variances, vanished, last, 9)
    assert last.counts.sum() == vanished.sum()


def test_k_posteriors_or_fewer_are_a_component_each() -> None:
    means, variances, counts = posteriors(9, 3, 0, unknown=4)
    found = compress(means, variances, counts, empty(6, 9, 3, torch.float64), 0)
    known = counts > 0
    assert len(found.member[known].unique()) == 5
    torch.testing.assert_close(found.means[found.member[known]], means[known])
    torch.testing.assert_close(found.variances[found.member[known]], variances[known])


def after_rounds(components: int, sampled: int, **overrides: Any) -> tuple[Any, Any]:
    config = settings(
        method__prior_components=components,
        method__prior_start=0,
        method__ortho_start=0.25,
        federation__sampled_clients=sampled,
        **overrides,
    )
    prepared = world(config)
    method = method_of(prepared)
    return method, rounds.train(method, config, prepared.clients)


def test_as_many_components_as_clients_is_the_full_prior() -> None:
    full, many = after_rounds(0, 4)[1], after_rounds(99, 4)[1]
    assert all((many.server.theta[k] == v).all() for k, v in full.server.theta.items())
    assert (many.private["log_pi"] == full.private["log_pi"]).all()


@pytest.mark.parametrize("kl", ["mc", "bound", "moment"])
def test_singletons_are_the_full_prior_for_every_client(kl: str) -> None:
    """Four known posteriors in five components: the same density, with each client's own left out."""
    method, state = after_rounds(5, 4, federation__rounds=1, method__kl=kl)
    full = method_of(world(settings(method__prior_start=0)))
    ids = torch.arange(6)
    z = torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(0)).double()
    small, _ = method.prior(torch.zeros(6, 5).double(), ids, None, method.broadcast(state.server))
    large, _ = full.prior(torch.zeros(6, 6).double(), ids, None, full.broadcast(state.server))
    torch.testing.assert_close(prior.log_density(z, small), prior.log_density(z, large))


def test_a_clients_own_posterior_has_no_part_in_its_prior() -> None:
    method, state = after_rounds(2, 6)
    server = state.server
    ids, log_pi = torch.arange(6), torch.zeros(6, 2).double()
    z = torch.zeros(6, 1, 4).double()
    before = prior.log_density(z, method.prior(log_pi, ids, None, method.broadcast(server))[0])
    means = server.means.clone()
    means[0] += 3.0
    now = Components.of(server.extra)
    weight = server.counts.double().unsqueeze(-1)
    inside = torch.nn.functional.one_hot(now.member, 2).double()
    total = inside.T @ weight
    mean = inside.T @ (weight * means) / total
    spread = inside.T @ (weight * (server.variances + (means - mean[now.member]) ** 2)) / total
    moved = replace(server, means=means, extra={**server.extra, **now._replace(means=mean, variances=spread).named()})
    after = prior.log_density(z, method.prior(log_pi, ids, None, method.broadcast(moved))[0])
    torch.testing.assert_close(after[0], before[0])
    assert ((after - before).abs()[1:] > 1e-6).all()


def test_the_download_does_not_grow_with_the_clients() -> None:
    sizes = []
    for clients in (6, 12):
        method, state = after_rounds(3, 6, federation__clients=clients)
        sizes.append(method.download_bytes(method.broadcast(state.server)))
        assert state.private["log_pi"].shape == (clients, 3)
        assert method.noise_spec().peers == 3
    theta = sum(v.numel() for v in state.server.theta.values()) * 8
    assert sizes == [theta + 4 * (2 * 4 * 8 + 8) + 8 + 8 + 4 * 2] * 2


@pytest.mark.parametrize("weights", ["gumbel", "uniform", "samples"])
def test_weights_of_a_compressed_prior_are_shared_out_among_peers(weights: str) -> None:
    method, state = after_rounds(3, 6, method__prior_weights=weights)
    w = diagnostics.prior_weights(method, state)
    torch.testing.assert_close(w.sum(-1), torch.ones(6).double())
    assert (w.diagonal() == 0).all()
    if weights == "uniform":  # every peer weighs the same, however they are clustered
        torch.testing.assert_close(w, (1 - torch.eye(6).double()) / 5)


def test_both_engines_agree_and_a_checkpoint_goes_on(tmp_path: Any) -> None:
    _, state = after_rounds(3, 4, method__posterior_age=2)
    _, looped = after_rounds(3, 4, method__posterior_age=2, federation__engine="loop")
    for k, v in looped.server.theta.items():
        torch.testing.assert_close(v, state.server.theta[k], atol=1e-9, rtol=0)
    config = settings(
        method__prior_components=3,
        method__prior_start=0,
        method__ortho_start=0.25,
        method__posterior_age=2,
        federation__sampled_clients=4,
    )
    prepared = world(config)
    first = method_of(prepared)
    middle = rounds.start(first, config, 6)
    for _ in range(2):
        middle, _ = rounds.one_round(first, config, prepared.clients, middle)
    checkpoint.save(tmp_path, middle, {})
    loaded = checkpoint.load(tmp_path)[0]
    rest = rounds.train(first, config, prepared.clients, loaded)
    assert all((rest.server.theta[k] == v).all() for k, v in state.server.theta.items())
    assert all((rest.server.extra[k] == v).all() for k, v in state.server.extra.items())


def test_a_posterior_that_is_not_renewed_is_forgotten() -> None:
    config = settings(method__posterior_age=2, method__prior_start=0, federation__rounds=8)
    prepared = world(config)
    method = method_of(prepared)
    last_seen = torch.full((6,), -99)
    state = rounds.start(method, config, 6)
    forgotten = 0
    for round in range(8):
        last_seen[rounds.sample_clients(config, 6, round)] = round
        state, _ = rounds.one_round(method, config, prepared.clients, state)
        fresh = round - last_seen < 2
        assert ((state.server.counts > 0) == fresh).all()
        assert (state.server.means[~fresh] == 0).all()
        assert (state.server.labels[~fresh] == -1).all()
        forgotten += int((~fresh & (last_seen >= 0)).sum())
    assert forgotten > 0
