"""Client-level differential privacy, composed around a method: clipping, Gaussian noise, and one account of both.

Neighbours are two federations that differ in *everything* one client holds (replace one), so a message clipped to norm
C changes by at most 2 C. Three kinds of message leave a client, and each has its own mechanism:

* the change theta_i - theta: clipped by the client, summed and noised by the server (`protect`, `noised_mean`), with
  equal weights and divided by the *fixed* number of clients that a round samples (McMahan et al. 2018, 1710.06963);
* the posterior statistics: clipped and noised by the client itself, since each is kept and shown by itself (`protect`);
* the moments of round 0: features clipped per response, the sum over all clients noised (`private_standardizer`).

Example counts would tell how much a client holds, and its scalar metrics how well it is fitted: with any of the three
switched on, counts become 1 and metrics stay at the client. Everything after that (clusters, prototypes, the prior)
is computed from what was noised and costs nothing more.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvpa.config import ExperimentConfig, PrivacyConfig
from fedvpa.errors import MissingExtra, UserError
from fedvpa.federation.aggregate import Mean, weighted_change
from fedvpa.federation.moments import Moments, Standardizer, client_moments, combine
from fedvpa.methods.base import Judging, Method, Surveying, Upload
from fedvpa.methods.oracle_labels import FedVPAGPLabels
from fedvpa.preferences.schema import NOTHING_RATED, RatingSums
from fedvpa.preferences.seeding import generator
from fedvpa.variational.selector import Theta

REPLACED = 2.0
"""Sensitivity of a sum of messages clipped to norm 1 when one client is replaced by another."""

LEAST_VARIANCE = 0.01
"""Noised variances below it are raised to it."""

_ORDERS = tuple(np.r_[np.linspace(1.02, 2, 50), np.linspace(2.25, 10, 32), np.arange(11.0, 65.0), 96.0, 128.0, 256.0])


@lru_cache(maxsize=1)
def _secret() -> int:
    """63 random bits of the operating system, the same in the whole process and nowhere written."""
    return secrets.randbits(63)


def root_seed(config: ExperimentConfig) -> int:
    """What noise and the choice of a round's clients derive from: the seed, or with `secret_noise` a secret.

    Whoever knows the seed can subtract the noise and list the sampled clients; the account assumes that nobody does.
    """
    return _secret() if config.privacy.secret_noise else config.seed


# Client --------------------------------------------------------------------------------------------------------------


def protect(upload: Upload, theta: Theta, config: ExperimentConfig, round: int, secret: int | None = None) -> Upload:
    """What K clients send instead of `upload`; the same object where privacy is off.

    Args:
        theta: the received parameters.
        secret: what the clients' own noise derives from; None: `root_seed`.
    """
    p = config.privacy
    if not p.on:
        return upload
    if p.clip is not None:
        change = clipped_changes(theta, upload.theta, p.clip)
        upload = replace(upload, theta={k: v + change[k] for k, v in theta.items()})
    if p.posterior_clip is not None and upload.means.shape[-1]:
        means, variances = noised_posteriors(upload, p, root_seed(config) if secret is None else secret, round)
        upload = replace(upload, means=means, variances=variances)
    return replace(upload, counts=torch.ones_like(upload.counts), metrics={})


def clipped_changes(theta: Theta, trained: Theta, clip: float) -> Theta:
    """theta_i - theta (K, ...) each, scaled down where its norm over all parameters exceeds `clip`."""
    change = {k: trained[k] - v for k, v in theta.items()}
    norm = torch.stack([v.reshape(len(v), -1).norm(dim=1) for v in change.values()]).norm(dim=0)
    factor = (clip / norm.clamp(min=1e-30)).clamp(max=1)
    return {k: v * factor.view(-1, *[1] * (v.dim() - 1)) for k, v in change.items()}


def noised_posteriors(upload: Upload, p: PrivacyConfig, seed: int, round: int) -> tuple[Tensor, Tensor]:
    """Means and variances (K, dim) of the upload, clipped (`clipped_posteriors`) and noised."""
    assert p.posterior_clip is not None
    draw = [
        torch.randn(2 * upload.means.shape[-1], generator=generator(seed, "privacy-posterior", round, int(i)))
        for i in upload.ids.tolist()
    ]
    noise = p.posterior_noise * p.posterior_clip * torch.stack(draw).to(upload.means)
    return clipped_posteriors(upload.means, upload.variances, p.posterior_clip, noise)


def clipped_posteriors(
    means: Tensor, variances: Tensor, clip: float, noise: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Means and variances (K, dim): (mubar, sbar^2 - 1) clipped as one vector, plus the noise, put together again.

    The origin of the clipping is N(0, I), the posterior of a user of whom nothing is known.

    Args:
        noise: (K, 2 dim).
    """
    message = torch.cat([means, variances - 1], -1)
    factor = (clip / message.norm(dim=-1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
    means, variances = (message * factor + noise).chunk(2, -1)
    return means, (1 + variances).clamp(min=LEAST_VARIANCE)


def moments_of(x: Tensor, config: ExperimentConfig, ratings: RatingSums = NOTHING_RATED) -> Moments:
    """A client's message of round 0, clipped where `privacy.moments_clip` says so.

    With privacy on nothing is said of ratings: no mechanism covers them, and no method that may run then needs them.

    Args:
        x: (responses, D) features.
        ratings: the client's.
    """
    clip = config.privacy.moments_clip
    if clip is not None:
        return clipped_moments(x, clip)
    return client_moments(x, NOTHING_RATED if config.privacy.on else ratings)


def clipped_moments(x: Tensor, clip: float) -> Moments:
    """A client's message of round 0 as means instead of sums, with every response's features cut to norm `clip`.

    The vector of means then has a norm of at most C, that of the mean squares of at most C^2, whatever the client
    holds.

    Args:
        x: (responses, D).
    """
    x = x.double()
    x = x * (clip / x.norm(dim=-1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
    return Moments(torch.ones((), dtype=torch.float64), x.mean(0), (x**2).mean(0))


# Server --------------------------------------------------------------------------------------------------------------


def mean_of(config: ExperimentConfig, clients: int, round: int) -> Mean:
    """How the changes of a round are averaged: by numbers of examples, or with DP equally and with noise."""
    if config.privacy.clip is None:
        return weighted_change
    expected = min(config.federation.sampled_clients, clients)
    return partial(noised_mean, p=config.privacy, expected=expected, seed=root_seed(config), round=round)


def noised_mean(theta: Theta, upload: Upload, *, p: PrivacyConfig, expected: int, seed: int, round: int) -> Theta:
    """(sum of the clipped changes + N(0, (sigma C)^2)) / expected.

    Changes are clipped once more, so that the bound does not rest on clients that keep to the rules; the divisor is a
    constant, so that a client that drops out changes nothing but its own term.
    """
    assert p.clip is not None
    change = clipped_changes(theta, upload.theta, p.clip)
    g = generator(seed, "privacy-theta", round)
    total = {k: v.sum(0) for k, v in change.items()}
    noise = {k: torch.randn(v.shape, generator=g, dtype=v.dtype).to(v.device) for k, v in total.items()}
    return {k: (v + p.noise * p.clip * noise[k]) / expected for k, v in total.items()}


def standardizer_of(messages: Iterable[Moments], config: ExperimentConfig) -> Standardizer:
    """The server's part of round 0, from the clients' `moments_of`; with `privacy.moments_clip` the private one."""
    return combine(messages) if config.privacy.moments_clip is None else private_standardizer(list(messages), config)


def private_standardizer(messages: Sequence[Moments], config: ExperimentConfig) -> Standardizer:
    """The federated moments under DP: the mean of the clients' clipped messages, with noise.

    What is not clearly above the noise (three deviations) is left in place: mean 0, scale 1.
    """
    p = config.privacy
    assert p.moments_clip is not None
    deviation = p.moments_noise * p.moments_clip / len(messages)
    g = generator(root_seed(config), "privacy-moments")
    noise = torch.randn(2, len(messages[0].total), generator=g, dtype=torch.float64) * deviation
    mean = torch.stack([m.total for m in messages]).mean(0) + noise[0]
    mean = torch.where(mean.abs() > 3 * deviation, mean, 0.0)
    squares = torch.stack([m.squares for m in messages]).mean(0) + p.moments_clip * noise[1]
    floor = max(1e-6, 3 * deviation * p.moments_clip)
    return combine([Moments(torch.ones((), dtype=torch.float64), mean, squares)], floor)


# Account -------------------------------------------------------------------------------------------------------------


def delta(p: PrivacyConfig, clients: int) -> float:
    """The configured delta, or N^-1.1."""
    return clients**-1.1 if p.delta is None else p.delta


def check(method: Method, config: ExperimentConfig) -> None:
    """Refuses methods whose clients send what no mechanism here covers.

    Raises:
        UserError: privacy is on for a method with surveys, with sums that nothing clips yet, with all data in one
            place, or that knows the true groups.
    """
    uncovered = isinstance(method, (Surveying, Judging, FedVPAGPLabels)) or getattr(method, "joint", False)
    if config.privacy.on and uncovered:
        problem = f"{method.name} sends more than the privacy account covers"
        remedy = "set method.name=fedvpa-gp, or leave the privacy section empty"
        raise UserError(problem, remedy, field="privacy")


def epsilon_after(method: Method, config: ExperimentConfig, clients: int, rounds: int) -> float | None:
    """epsilon of everything that was released after `rounds` rounds; None where privacy is off.

    Infinite as long as one of the method's messages goes out without noise.
    """
    if not config.privacy.on:
        return None
    # Posteriors are kept per client, and private rows remember past rounds: both show who was sampled.
    shown = method.latent or bool(method.init_client(1))
    sampled = min(config.federation.sampled_clients, clients)
    return account(config.privacy, clients, sampled, rounds, method.latent, shown)


def account(p: PrivacyConfig, clients: int, sampled: int, rounds: int, latent: bool, shown: bool) -> float:
    """epsilon at `delta` of moments, theta and posteriors together, against whoever sees all that the server releases.

    Renyi DP adds up over rounds and messages (Mironov 2017, 1702.07476) and is turned into epsilon by dp-accounting.

    Args:
        latent: whether posterior statistics are sent.
        shown: whether what is released tells which clients a round sampled. Then the bound is exact for that case:
            with probability q a client takes part and the adversary sees it, so the divergence of order a is
            log(1 - q + q exp((a - 1) e(a))) / (a - 1), e(a) that of a round with the client. Otherwise sampling
            without replacement hides the client (Wang, Balle, Kasiviswanathan 2019, 1808.00087, Theorem 27); the
            lower of the two bounds counts.
    """
    noises = [p.noise if p.clip is not None else 0.0]
    noises += [p.posterior_noise if p.posterior_clip is not None else 0.0] if latent else []
    if min(noises) <= 0 or p.moments_clip is None or p.moments_noise <= 0:
        return float("inf")
    compute_epsilon = _accounting().compute_epsilon
    orders = np.array(_ORDERS)
    # Two vectors of norm 1 each leave in round 0, from every client.
    once = orders / 2 * 2 * (REPLACED / p.moments_noise) ** 2
    round = _round_divergence(tuple(noises), clients, sampled, shown)
    found, _ = compute_epsilon(orders, once + rounds * np.array(round), delta(p, clients))
    return float(found)


@lru_cache(maxsize=32)
def _round_divergence(noises: tuple[float, ...], clients: int, sampled: int, shown: bool) -> tuple[float, ...]:
    """Renyi divergence of one round at each of `_ORDERS`."""
    orders, q = np.array(_ORDERS), sampled / clients
    inverse = sum((REPLACED / s) ** 2 for s in noises)  # (sensitivity / deviation)^2 of the messages together
    with np.errstate(divide="ignore"):
        grown = np.log(q) + (orders - 1) * orders / 2 * inverse
        seen = np.logaddexp(np.log1p(-q), grown) / (orders - 1)
    if shown:
        return tuple(seen)
    rdp = _accounting()
    event = rdp.dp_event.SampledWithoutReplacementDpEvent(clients, sampled, rdp.dp_event.GaussianDpEvent(inverse**-0.5))
    accountant = rdp.RdpAccountant(orders, rdp.NeighborRel.REPLACE_ONE).compose(event)
    return tuple(np.minimum(seen, accountant._rdp))


def _accounting() -> Any:
    """dp-accounting's module of Renyi DP, which is an extra.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        from dp_accounting.rdp import rdp_privacy_accountant
    except ImportError:
        raise MissingExtra("dp-accounting (for the privacy account)", "privacy") from None
    return rdp_privacy_accountant
