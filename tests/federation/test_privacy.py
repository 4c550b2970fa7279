"""Clipping and noise against their bounds, the account against closed forms, and bits that stay when privacy is off."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvpa.config import PrivacyConfig, parse_config
from fedvpa.errors import UserError
from fedvpa.evaluation.experiment import run_method
from fedvpa.federation import privacy, rounds
from fedvpa.federation.aggregate import weighted_change
from fedvpa.methods.base import Upload
from toy import method_of, settings, world

ALL = {
    "privacy__clip": 0.1,
    "privacy__noise": 0.5,
    "privacy__posterior_clip": 1.0,
    "privacy__posterior_noise": 0.5,
    "privacy__moments_clip": 5.0,
    "privacy__moments_noise": 2.0,
}


def upload(clients: int, scale: float = 1.0, seed: int = 0) -> tuple[dict[str, torch.Tensor], Upload]:
    """Global parameters, and clients that moved away from them by about `scale`."""
    g = torch.Generator().manual_seed(seed)
    theta = {"a.weight": torch.randn(3, 4, generator=g).double(), "b": torch.randn((), generator=g).double()}
    moved = {k: v + scale * torch.randn(clients, *v.shape, generator=g).double() for k, v in theta.items()}
    means = scale * torch.randn(clients, 5, generator=g).double()
    counts = torch.arange(1, clients + 1)
    return theta, Upload(torch.arange(clients), moved, means, means**2, counts, {"loss": counts.double()})


def norms(theta: dict[str, torch.Tensor], up: Upload) -> torch.Tensor:
    return torch.cat([(up.theta[k] - v).reshape(len(up.ids), -1) for k, v in theta.items()], 1).norm(dim=1)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 10), st.integers(0, 99))
@hypothesis_settings(max_examples=30, deadline=None)
def test_whatever_a_client_did_its_message_is_within_the_bounds(scale: float, clip: float, seed: int) -> None:
    theta, up = upload(4, scale, seed)
    config = settings(privacy__clip=clip, privacy__posterior_clip=clip)
    sent = privacy.protect(up, theta, config, 0)
    assert (norms(theta, sent) <= clip * (1 + 1e-9) + 1e-12).all()
    short = norms(theta, up) < clip
    torch.testing.assert_close(norms(theta, sent)[short], norms(theta, up)[short])
    statistics = torch.cat([sent.means, sent.variances - 1], 1).norm(dim=1)
    assert (statistics <= clip * (1 + 1e-9)).all()
    assert sent.counts.tolist() == [1] * 4
    assert sent.metrics == {}


def test_the_mean_has_equal_weights_a_fixed_divisor_and_noise_of_the_right_size() -> None:
    theta, up = upload(3, 1e-3)
    p = PrivacyConfig(clip=1.0)
    plain = privacy.noised_mean(theta, up, p=p, expected=6, seed=0, round=0)
    for k, v in theta.items():
        torch.testing.assert_close(plain[k], (up.theta[k] - v).sum(0) / 6)
    wide = {"w": torch.zeros(40_000, dtype=torch.float64)}
    still = Upload(torch.arange(2), {"w": torch.zeros(2, 40_000).double()}, *[torch.zeros(2, 0)] * 2, torch.ones(2), {})
    noised = privacy.noised_mean(wide, still, p=PrivacyConfig(clip=2.0, noise=3.0), expected=4, seed=0, round=0)["w"]
    assert float(noised.std()) == pytest.approx(3.0 * 2.0 / 4, rel=0.02)
    assert abs(float(noised.mean())) < 0.03
    again = privacy.noised_mean(wide, still, p=PrivacyConfig(clip=2.0, noise=3.0), expected=4, seed=0, round=0)["w"]
    other = privacy.noised_mean(wide, still, p=PrivacyConfig(clip=2.0, noise=3.0), expected=4, seed=0, round=1)["w"]
    assert torch.equal(noised, again)
    assert not torch.equal(noised, other)


def test_a_client_that_breaks_the_rules_still_moves_the_mean_by_no_more_than_its_share() -> None:
    theta, up = upload(3, 100.0)
    mean = privacy.noised_mean(theta, up, p=PrivacyConfig(clip=0.5), expected=3, seed=0, round=0)
    assert float(torch.cat([v.flatten() for v in mean.values()]).norm()) <= 0.5 + 1e-9


def test_posterior_noise_is_each_clients_own_and_variances_stay_positive() -> None:
    theta, up = upload(4)
    config = settings(privacy__posterior_clip=1.0, privacy__posterior_noise=50.0)
    one, two = (privacy.protect(up, theta, config, r) for r in (3, 4))
    assert not torch.equal(one.means, two.means)
    part = Upload(
        up.ids[2:], {k: v[2:] for k, v in up.theta.items()}, up.means[2:], up.variances[2:], up.counts[2:], {}
    )
    assert torch.equal(privacy.protect(part, theta, config, 3).means, one.means[2:])  # whoever is in the stack
    assert (one.variances >= privacy.LEAST_VARIANCE).all()


@given(st.floats(0.1, 100), st.integers(0, 99))
@hypothesis_settings(max_examples=20, deadline=None)
def test_one_client_moves_the_moments_by_a_bounded_amount(clip: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    message = privacy.clipped_moments(50 * torch.randn(7, 6, generator=g), clip)
    assert float(message.total.norm()) <= clip * (1 + 1e-9)
    assert float(message.squares.norm()) <= clip**2 * (1 + 1e-9)


def standardizer(parts: list[torch.Tensor], **overrides: Any) -> Any:
    config = settings(**overrides)
    return privacy.standardizer_of((privacy.moments_of(x, config) for x in parts), config)


def test_private_moments_without_noise_are_those_of_equal_clients() -> None:
    g = torch.Generator().manual_seed(0)
    parts = [3 * torch.randn(9, 4, generator=g) + 1 for _ in range(5)]
    found = standardizer(parts, privacy__moments_clip=1e6)
    together = torch.cat(parts).double()
    torch.testing.assert_close(found.mean, together.mean(0).float())
    torch.testing.assert_close(found.scale, together.std(0, correction=0).float())
    drowned = standardizer(parts, privacy__moments_clip=1e3, privacy__moments_noise=1.0)
    assert drowned.scale.tolist() == [1.0] * 4
    assert drowned.mean.tolist() == [0.0] * 4


def engine(name: str = "fedvpa-gp", **overrides: Any) -> rounds.TrainingState:
    config = settings(method__prior_start=0.25, method__ortho_start=0.25, **overrides)
    prepared = world(config, ragged=True)
    return rounds.train(method_of(prepared, name), config, prepared.clients)


def test_privacy_off_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings()
    theta, up = upload(3)
    assert privacy.protect(up, theta, config, 0) is up
    assert privacy.mean_of(config, 6, 0) is weighted_change
    assert privacy.root_seed(config) == config.seed
    new = engine().server
    monkeypatch.setattr(privacy, "protect", lambda up, *_: up)
    monkeypatch.setattr(privacy, "mean_of", lambda *_: weighted_change)
    old = engine().server
    assert all(torch.equal(v, old.theta[k]) for k, v in new.theta.items())
    assert torch.equal(new.means, old.means)


def test_with_noise_the_loop_equals_the_stack_and_a_seed_its_repetition() -> None:
    one, two = (engine(federation__engine=e, **ALL).server for e in ("vectorized", "loop"))
    for k, v in one.theta.items():
        torch.testing.assert_close(v, two.theta[k], atol=1e-9, rtol=0)
    torch.testing.assert_close(one.means, two.means, atol=1e-9, rtol=0)
    same, other = engine(**ALL).server, engine(seed=1, **ALL).server
    assert all(torch.equal(v, same.theta[k]) for k, v in one.theta.items())
    assert not torch.equal(one.means, other.means)


def test_secret_noise_does_not_follow_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "_secret", lambda: 11)
    one = engine(privacy__secret_noise=True, **ALL).server
    monkeypatch.setattr(privacy, "_secret", lambda: 12)
    two = engine(privacy__secret_noise=True, **ALL).server
    assert not torch.equal(one.means, two.means)


def account(noise: float, clients: int = 100, sampled: int = 10, rounds: int = 50, shown: bool = True) -> float:
    p = PrivacyConfig(clip=1, noise=noise, moments_clip=1, moments_noise=1e6)
    return privacy.account(p, clients, sampled, rounds, False, shown)


def test_when_everybody_takes_part_it_is_the_gaussian_mechanism() -> None:
    """With q = 1 the divergence is a * rho, so epsilon <= rho + 2 sqrt(rho log(1 / delta)) (Bun, Steinke 2016)."""
    rounds, noise, clients = 20, 30.0, 100
    rho = rounds / 2 * (privacy.REPLACED / noise) ** 2
    bound = rho + 2 * math.sqrt(rho * 1.1 * math.log(clients))
    assert 0.5 * bound < account(noise, clients, clients, rounds) <= bound


def test_epsilon_falls_with_noise_and_clients_and_grows_with_rounds() -> None:
    by_noise = [account(s) for s in (0.5, 1, 2, 4, 8)]
    assert by_noise == sorted(by_noise, reverse=True)
    assert account(2, rounds=10) < account(2, rounds=100)
    assert account(4, clients=1000) < account(4, clients=100)
    assert account(4, shown=False) < account(4)  # who is not seen to take part is better hidden
    assert all(account(s, shown=False) <= account(s) for s in (0.1, 0.5, 1))


def test_the_visible_bound_equals_the_divergence_computed_by_numerical_integration() -> None:
    """One round, q = 0.3: E over (took part?, output) of (P / Q)^(a - 1) under P, on a grid."""
    q, sigma, order = 0.3, 2.0, privacy._ORDERS[40]
    x = np.linspace(-60, 60, 200_001)
    s = sigma / privacy.REPLACED
    p, n = (-((x - m) ** 2) / (2 * s**2) - math.log(s * math.sqrt(2 * math.pi)) for m in (1.0, 0.0))
    inner = np.trapezoid(np.exp(order * p + (1 - order) * n), x)
    expected = math.log(1 - q + q * inner) / (order - 1)
    assert privacy._round_divergence((sigma,), 10, 3, True)[40] == pytest.approx(expected, rel=1e-6)


def test_a_message_without_noise_has_no_bound() -> None:
    base = {"clip": 1, "noise": 1, "posterior_clip": 1, "posterior_noise": 1, "moments_clip": 1, "moments_noise": 1}
    assert math.isfinite(privacy.account(PrivacyConfig(**base), 100, 10, 5, True, True))
    for missing in ("noise", "posterior_noise", "moments_noise"):
        p = PrivacyConfig(**{**base, missing: 0})
        assert privacy.account(p, 100, 10, 5, True, True) == math.inf
    without = PrivacyConfig(**{**base, "posterior_clip": None, "posterior_noise": 0})
    assert math.isfinite(privacy.account(without, 100, 10, 5, False, True))  # no posterior is sent at all


def test_the_default_delta_and_noise_without_a_bound() -> None:
    assert privacy.delta(PrivacyConfig(), 100) == pytest.approx(100**-1.1)
    assert privacy.delta(PrivacyConfig(delta=1e-5), 100) == 1e-5
    with pytest.raises(UserError, match="give posterior_clip too"):
        parse_config({"privacy": {"posterior_noise": 1.0}})


@pytest.mark.parametrize("name", ["fedvpa-laplace", "fedbiscuit", "central-vpl", "fedvpa-gp+labels"])
def test_methods_that_send_more_are_refused(name: str) -> None:
    said = f"privacy: {re.escape(name)} sends more than the privacy account covers; set method.name=fedvpa-gp"
    with pytest.raises(UserError, match=said):
        engine(name, **ALL)


@pytest.mark.parametrize("name", ["fedvpa-gp", "fedvpl", "fedbt", "fedpdpo", "vmtl"])
def test_epsilon_is_in_every_row_and_grows_over_the_rounds(name: str) -> None:
    prepared = world(settings(**ALL))
    seen: list[float] = []
    run = run_method(prepared, name, on_round=lambda report, *_: seen.append(report.epsilon or 0.0))
    assert seen == sorted(seen)
    assert math.isfinite(seen[-1])
    assert {row["epsilon"] for row in run.rows} == {seen[-1]}
    off = run_method(world(settings()), name)
    assert {row["epsilon"] for row in off.rows} == {None}
