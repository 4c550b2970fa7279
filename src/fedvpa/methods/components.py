"""The compressed prior: K weighted Gaussians that stand for the posteriors of all clients (method.md, section 6).

The server clusters the posteriors and keeps each cluster's moments. Weight, mean and variance of the whole mixture are
then exactly those of the posteriors; what a client receives no longer grows with the number of clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor

FIRST_STARTS, STEPS = 4, 20
"""k-means++ starts of the first clustering, and Lloyd steps of every later one."""

_PREFIX = "prior."


class Components(NamedTuple):
    """K weighted Gaussians, and who is in which.

    Attributes:
        means, variances: (K, dim); counts: (K,) int64 sums of the members' weights, 0 where a component is empty.
        member: (clients,) int64 component of each client, -1 where it has no posterior.
    """

    means: Tensor
    variances: Tensor
    counts: Tensor
    member: Tensor

    def named(self) -> dict[str, Tensor]:
        """As `ServerState.extra` holds them."""
        return {f"{_PREFIX}{k}": v for k, v in self._asdict().items()}

    @staticmethod
    def of(extra: Mapping[str, Tensor]) -> Components:
        """The inverse of `named`."""
        return Components(*(extra[f"{_PREFIX}{k}"] for k in Components._fields))

    @staticmethod
    def are_in(extra: Mapping[str, Tensor]) -> bool:
        """Whether `ServerState.extra` holds a compressed prior."""
        return f"{_PREFIX}member" in extra


class Own(NamedTuple):
    """Each client's own component without the client; row i is for client i alone.

    Attributes:
        component: (clients,) int64, -1 for a client that is in none.
        means, variances: (clients, dim); counts: (clients,), 0 for a client that is alone in its component.
    """

    component: Tensor
    means: Tensor
    variances: Tensor
    counts: Tensor


def empty(components: int, clients: int, dim: int, dtype: torch.dtype) -> Components:
    """No posterior is known yet."""
    return Components(
        torch.zeros(components, dim, dtype=dtype),
        torch.ones(components, dim, dtype=dtype),
        torch.zeros(components, dtype=torch.int64),
        torch.full((clients,), -1),
    )


def weights(counts: Tensor, prior_weights: str) -> Tensor:
    """What a posterior weighs inside its component: its examples, or 1 where `method.prior_weights` is uniform."""
    return counts.sign() if prior_weights == "uniform" else counts


def compress(means: Tensor, variances: Tensor, weights: Tensor, last: Components, seed: int) -> Components:
    """Clusters of posteriors with their moments, numbered like the components of the round before.

    The weighted k-means starts from those, in the coordinates (mean, standard deviation), in which squared distance is
    the 2-Wasserstein distance of diagonal Gaussians; a Hungarian assignment gives every cluster its number, so that a
    client's log pi_ik keeps its meaning. Up to K posteriors are a component each.

    Args:
        means, variances: (clients, dim); weights: (clients,) int64, 0 for a client without a posterior.
        last: the components before.
        seed: of the first clustering, which has nothing to start from.
    """
    known = (weights > 0).nonzero().flatten()
    x = _coordinates(means[known], variances[known])
    size = min(len(last.counts), len(known))
    anchors = np.where((last.counts > 0).numpy()[:, None], _coordinates(last.means, last.variances), np.nan)
    label = _clusters(x, weights[known].numpy(), size, anchors, seed)
    if len(x):
        label = _number(np.stack([x[label == k].mean(0) for k in range(label.max() + 1)]), anchors)[label]
    member = torch.full((len(weights),), -1)
    member[known] = torch.from_numpy(label.astype(np.int64))
    return _moments(means, variances, weights, member, last)


def remaining(means: Tensor, variances: Tensor, weights: Tensor, components: Components) -> Components:
    """The components as the posteriors that are left make them: clients of weight 0 are in none.

    A component that has nobody left goes back to N(0, I), since its place was its last member's posterior.

    Args:
        means, variances: (clients, dim); weights: (clients,) as given to `compress`.
    """
    member = torch.where(weights > 0, components.member, -1)
    size, dim = components.means.shape
    return _moments(means, variances, weights, member, empty(size, len(member), dim, components.means.dtype))


def without_own(means: Tensor, variances: Tensor, weights: Tensor, components: Components) -> Own:
    """What is left of each client's component when its own posterior, as the server holds it, is taken out.

    Args:
        means, variances: (clients, dim); weights: (clients,) as given to `compress`.
    """
    member = components.member
    mine = member.clamp(min=0)
    weight = weights.double().unsqueeze(-1)
    left = (components.counts[mine] - weights).clamp(min=0)
    total = components.counts[mine].double().unsqueeze(-1)
    share = left.double().clamp(min=1).unsqueeze(-1)
    centre, own = components.means[mine].double(), means.double()
    # Moments about the component's mean: taking out small shares of large sums would cost digits.
    shift = -(weight / share) * (own - centre)
    second = (total * components.variances[mine].double() - weight * (variances.double() + (own - centre) ** 2)) / share
    variance = (second - shift**2).clamp(min=0)
    inside = (member >= 0) & (left > 0)
    return Own(
        member,
        torch.where(inside.unsqueeze(-1), centre + shift, 0.0).to(means.dtype),
        torch.where(inside.unsqueeze(-1), variance, 1.0).to(means.dtype),
        torch.where(inside, left, 0),
    )


def _coordinates(means: Tensor, variances: Tensor) -> np.ndarray:
    return torch.cat([means, variances.sqrt()], -1).double().numpy()


def _clusters(x: np.ndarray, weights: np.ndarray, size: int, anchors: np.ndarray, seed: int) -> np.ndarray:
    """(users,) labels of at most `size` clusters, each used."""
    if size == len(x):
        return np.arange(size)
    start = anchors[~np.isnan(anchors[:, 0])][:size]
    if not len(start):
        found = KMeans(size, n_init=FIRST_STARTS, random_state=seed)
    else:
        found = KMeans(size, init=_completed(start, x, size), n_init=1, max_iter=STEPS)
    return np.unique(found.fit(x, sample_weight=weights).labels_, return_inverse=True)[1]


def _completed(start: np.ndarray, x: np.ndarray, size: int) -> np.ndarray:
    """`size` centres: `start`, and the users that are furthest from what there is."""
    nearest = ((x[:, None] - start[None]) ** 2).sum(-1).min(1) if len(start) < size else x[:0]
    while len(start) < size:
        far = x[nearest.argmax()]
        start = np.concatenate([start, far[None]])
        nearest = np.minimum(nearest, ((x - far) ** 2).sum(-1))
    return start


def _number(centres: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(clusters,) the component of each cluster: the nearest by assignment; new ones go where there was none."""
    distance = ((centres[:, None] - anchors[None]) ** 2).sum(-1)
    new = np.isnan(distance)
    far = distance[~new].max() + 1 if (~new).any() else 0.0
    return linear_sum_assignment(np.where(new, len(centres) * far + 1, distance))[1]


def _moments(means: Tensor, variances: Tensor, weights: Tensor, member: Tensor, last: Components) -> Components:
    """The members' moments; an empty component has count 0, and nobody reads its place."""
    inside = member >= 0
    index, weight = member[inside], weights[inside].double().unsqueeze(-1)
    m, v = means[inside].double(), variances[inside].double()
    shape = last.means.shape
    total = torch.zeros(shape[0], 1, dtype=torch.float64).index_add_(0, index, weight)
    share = total.clamp(min=1)
    mean = torch.zeros(shape, dtype=torch.float64).index_add_(0, index, weight * m) / share
    within = v + (m - mean[index]) ** 2
    variance = torch.zeros(shape, dtype=torch.float64).index_add_(0, index, weight * within) / share
    there = total > 0
    return Components(
        torch.where(there, mean.to(means.dtype), last.means),
        torch.where(there, variance.to(means.dtype), last.variances),
        total.squeeze(-1).to(torch.int64),
        member,
    )
