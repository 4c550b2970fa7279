"""Clusters of users from their posterior means: balanced k-means, matched to the clusters of the round before."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linear_sum_assignment, linprog
from sklearn.cluster import kmeans_plusplus
from sklearn.metrics import silhouette_score
from torch import Tensor

FEWEST, MOST = 2, 8
"""The numbers of clusters among which `choose_clusters` chooses."""

LARGE = 10**7
"""Users times slots above which sizes are bounded by a linear programme: 10,000 users would need gigabytes of slots."""

Balance = Literal["equal", "bounded", "none"]


class Clusters(NamedTuple):
    """Labels (users,) int64 and centroids (M, dim)."""

    labels: Tensor
    centroids: Tensor


def size_bounds(users: int, clusters: int, balance: Balance) -> tuple[int, int]:
    """Smallest and largest size of a cluster: `equal` is the paper's, `bounded` 0.25 to 2.5 times the even share."""
    share = users / clusters
    if balance == "equal":
        return int(np.floor(share)), int(np.ceil(share))
    if balance == "bounded":
        return int(np.floor(0.25 * share)), int(np.ceil(2.5 * share))
    return 0, users


def assign(distance: np.ndarray, low: int, high: int) -> np.ndarray:
    """The cheapest assignment of users to clusters whose sizes lie in [low, high].

    Args:
        distance: (users, clusters) costs.

    Returns:
        (users,) clusters. Solved as an assignment to `high` slots per cluster, of which the first `low` carry a bonus
        larger than any cost, so that all of them are filled; for many users, whose slots would fill the memory, as the
        transport problem that it is.
    """
    nearest = distance.argmin(1)
    sizes = np.bincount(nearest, minlength=distance.shape[1])
    if sizes.min() >= low and sizes.max() <= high:
        return nearest
    if len(distance) * distance.shape[1] * high > LARGE:
        return _transport(distance, low, high)
    slots = np.repeat(distance, high, axis=1)
    bonus = np.tile(np.arange(high) < low, distance.shape[1])
    slots[:, bonus] -= (distance.max() + 1) * (len(distance) + 1)
    _, column = linear_sum_assignment(slots)
    return column // high


def _transport(distance: np.ndarray, low: int, high: int) -> np.ndarray:
    """`assign` as a linear programme; the simplex method ends in a corner, where nobody is divided."""
    users, clusters = distance.shape
    each = sparse.kron(sparse.eye_array(users), np.ones((1, clusters)), format="csr")
    sizes = sparse.kron(np.ones((1, users)), sparse.eye_array(clusters), format="csr")
    found = linprog(
        distance.ravel(),
        A_ub=sparse.vstack([sizes, -sizes]),
        b_ub=np.repeat([high, -low], clusters),
        A_eq=each,
        b_eq=np.ones(users),
        bounds=(0, 1),
        method="highs-ds",
    )
    return found.x.reshape(users, clusters).argmax(1)


def _lloyd(
    x: np.ndarray, centroids: np.ndarray, low: int, high: int, steps: int
) -> tuple[np.ndarray, np.ndarray, float]:
    labels = np.full(len(x), -1)
    for _ in range(steps):
        distance = ((x[:, None] - centroids[None]) ** 2).sum(-1)
        new = assign(distance, low, high)
        if (new == labels).all():
            break
        labels = new
        for k in range(len(centroids)):
            if (labels == k).any():
                centroids[k] = x[labels == k].mean(0)
    inertia = float(((x - centroids[labels]) ** 2).sum())
    return labels, centroids, inertia


def balanced_kmeans(
    means: Tensor,
    clusters: int,
    balance: Balance,
    generator: torch.Generator,
    start: Tensor | None = None,
    restarts: int = 4,
    steps: int = 50,
) -> Clusters:
    """k-means with bounded cluster sizes; the best of `restarts` k-means++ starts and, if given, of `start`.

    Args:
        means: (users, dim), users >= clusters.
        start: (clusters, dim) centroids of the round before.
    """

    x = means.double().cpu().numpy()
    low, high = size_bounds(len(x), clusters, balance)
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    starts = [] if start is None else [start.double().cpu().numpy().copy()]
    starts += [kmeans_plusplus(x, clusters, random_state=seed + r)[0].copy() for r in range(restarts)]
    labels, centroids, _ = min((_lloyd(x, s, low, high, steps) for s in starts), key=lambda run: run[2])
    return Clusters(torch.from_numpy(labels), torch.from_numpy(centroids).to(means.dtype))


def choose_clusters(means: Tensor, balance: Balance, generator: torch.Generator, most: int = MOST) -> int:
    """M by the largest mean silhouette (Rousseeuw 1987) of the users' posterior means over M = 2 .. `most`; the
    smallest of equals. It needs no label, no density in 32 dimensions, and nothing that the server does not hold.

    Args:
        means: (users, dim).
    """

    x, best, chosen = means.double().cpu().numpy(), -np.inf, 1
    for clusters in range(FEWEST, min(most, len(x) - 1) + 1):
        labels = balanced_kmeans(means, clusters, balance, generator, restarts=10).labels.numpy()
        score = silhouette_score(x, labels) if len(np.unique(labels)) > 1 else -np.inf
        if score > best + 1e-9:
            best, chosen = score, clusters
    return chosen


def match(centroids: Tensor, anchors: Tensor) -> Tensor:
    """Which cluster belongs to which anchor (Hungarian assignment on squared distance).

    Args:
        centroids, anchors: (M, dim)

    Returns:
        (M,) int64: entry k is the anchor (prototype) of cluster k.
    """
    distance = torch.cdist(centroids.double(), anchors.double()).square().cpu().numpy()
    _, column = linear_sum_assignment(distance)
    return torch.from_numpy(column)


def relabel(clusters: Clusters, anchors: Tensor) -> Clusters:
    """The same clusters numbered like their anchors, so that an index keeps its meaning over rounds."""
    to = match(clusters.centroids, anchors)
    centroids = torch.empty_like(clusters.centroids)
    centroids[to] = clusters.centroids
    return Clusters(to[clusters.labels], centroids)
