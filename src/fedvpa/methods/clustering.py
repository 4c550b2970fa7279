"""Clusters of users from their posterior means: balanced k-means, matched to the clusters of the round before."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import kmeans_plusplus
from sklearn.metrics import silhouette_score
from torch import Tensor

FEWEST, MOST = 2, 8
"""The numbers of clusters among which `choose_clusters` chooses."""

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


def assign(distance: np.ndarray, low: int, high: int, start: np.ndarray | None = None) -> np.ndarray:
    """The cheapest assignment of users to clusters whose sizes lie in [low, high].

    Everybody's nearest cluster where that is allowed. Otherwise a minimum-cost flow on the graph of the clusters alone:
    users move along negative cycles until there is none, which is when a flow is the cheapest (Klein 1967). Memory is
    in proportion to the number of users.

    Args:
        distance: (users, clusters) costs; clusters * low <= users <= clusters * high.
        start: (users,) clusters to begin from, such as those of nearly the same costs; the nearest by default.

    Returns:
        (users,) clusters.
    """
    nearest = distance.argmin(1)
    sizes = np.bincount(nearest, minlength=distance.shape[1])
    if sizes.min() >= low and sizes.max() <= high:
        return nearest
    label = nearest if start is None else start.copy()
    while (moves := _cheaper(distance, label, low, high)) is not None:
        for users, to in moves:
            label[users] = to
    return label


def _cheaper(distance: np.ndarray, label: np.ndarray, low: int, high: int) -> list[tuple[np.ndarray, int]] | None:
    """Which users to move to which clusters so that the assignment becomes cheaper, or nearer to the bounds; None: it
    is the best.

    Nodes are the clusters and, last, the outside, through which one cluster grows at another's cost. An edge costs what
    its cheapest user costs; whoever must leave or is missing pays for any path. Along the cycle as many users move as
    gain by it.
    """
    clusters = outside = distance.shape[1]
    sizes = np.bincount(label, minlength=clusters)
    members = [np.flatnonzero(label == k) for k in range(clusters)]
    cost = distance.T
    extra = [cost[:, users] - cost[k, users] for k, users in enumerate(members)]  # (clusters, users of k)
    edge = np.full((clusters + 1, clusters + 1), np.inf)
    for k in np.flatnonzero(sizes):
        edge[k, :clusters] = extra[k].min(1)
    scale = float(np.abs(distance).max()) + 1
    must, tolerance = -4.0 * (clusters + 1) * scale, 1e-12 * scale
    edge[outside, :clusters] = np.where(sizes > high, must, np.where(sizes > low, 0.0, np.inf))
    edge[:clusters, outside] = np.where(sizes < low, must, np.where(sizes < high, 0.0, np.inf))
    np.fill_diagonal(edge, np.inf)
    cycle = _negative_cycle(edge, tolerance)
    if cycle is None:
        return None
    steps = list(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    paths = [(a, b) for a, b in steps if outside not in (a, b)]
    many, toll = min(sizes[a] for a, _ in paths), 0.0
    for a, b in steps:
        if outside in (a, b):
            size, toll = sizes[min(a, b)], toll + edge[a, b]
            rooms = (size - high, size - low) if a == outside else (low - size, high - size)
            many = min(many, next(room for room in rooms if room > 0))
    slack = -toll - sum(edge[a, b] for a, b in paths)  # nobody moves who alone costs so much more than the cheapest
    gain, order = np.full(many, toll), []
    for a, b in paths:
        able = np.flatnonzero(extra[a][b] <= edge[a, b] + slack)
        order.append(able[np.argsort(extra[a][b, able], kind="stable")][:many])
        gain = gain[: len(order[-1])] + extra[a][b, order[-1][: len(gain)]]
    chosen = max(1, int((gain < -tolerance).sum()))  # the costs ascend, and the first of them is the cycle's
    return [(members[a][users[:chosen]], b) for (a, b), users in zip(paths, order, strict=True)]


def _negative_cycle(edge: np.ndarray, tolerance: float) -> list[int] | None:
    """Nodes of a cycle whose edges (nodes, nodes) sum to less than -tolerance, or None (Bellman and Ford)."""
    nodes = len(edge)
    cost, parent = np.zeros(nodes), np.full(nodes, -1)
    for _ in range(nodes):
        through = cost[:, None] + edge
        best = through.argmin(0)
        shorter = through[best, np.arange(nodes)] < cost - tolerance
        if not shorter.any():
            return None
        cost = np.where(shorter, through[best, np.arange(nodes)], cost)
        parent = np.where(shorter, best, parent)
    node = int(np.flatnonzero(shorter)[0])
    for _ in range(nodes):
        node = int(parent[node])
    cycle = [node]
    while (node := int(parent[node])) != cycle[0]:
        cycle.append(node)
    return cycle[::-1]


def _lloyd(
    x: np.ndarray, centroids: np.ndarray, low: int, high: int, steps: int
) -> tuple[np.ndarray, np.ndarray, float]:
    labels, squares = None, (x**2).sum(1)
    for _ in range(steps):
        distance = np.asfortranarray(squares[:, None] - x @ (2 * centroids.T) + (centroids**2).sum(1))
        new = assign(distance, low, high, labels)
        if labels is not None and (new == labels).all():
            break
        labels = new
        for k in range(len(centroids)):
            if (labels == k).any():
                centroids[k] = x[labels == k].mean(0)
    assert labels is not None
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
