"""Balanced k-means: sizes, separated blobs, and indices that keep their meaning."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from fedvpa.methods import clustering
from fedvpa.methods.clustering import Clusters, choose_clusters


@given(st.integers(4, 24), st.integers(1, 4), st.sampled_from(["equal", "bounded", "none"]), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_sizes_lie_within_the_bounds(users: int, clusters: int, balance: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    # Skewed on purpose: most users lie in one place.
    means = torch.randn(users, 3, generator=g) * (torch.rand(users, 1, generator=g) < 0.3)
    means += 1e-3 * torch.randn(users, 3, generator=g)
    found = clustering.balanced_kmeans(means, clusters, balance, g)
    low, high = clustering.size_bounds(users, clusters, balance)
    sizes = found.labels.bincount(minlength=clusters)
    assert len(sizes) == clusters
    assert sizes.sum() == users
    assert low <= sizes.min()
    assert sizes.max() <= high
    for k in range(clusters):
        if sizes[k]:
            torch.testing.assert_close(found.centroids[k], means[found.labels == k].mean(0), atol=1e-5, rtol=1e-4)


def test_bounds() -> None:
    assert clustering.size_bounds(10, 4, "equal") == (2, 3)
    assert clustering.size_bounds(12, 4, "equal") == (3, 3)
    assert clustering.size_bounds(40, 4, "bounded") == (2, 25)
    assert clustering.size_bounds(40, 4, "none") == (0, 40)


@pytest.mark.parametrize(("low", "high"), [(2, 2), (1, 3), (0, 6)])
def test_assignment_is_the_cheapest_one_allowed(low: int, high: int) -> None:
    cost = np.random.default_rng(0).random((6, 3)) * [1.0, 0.3, 2.0]
    best = np.inf
    for labels in itertools.product(range(3), repeat=6):
        sizes = np.bincount(labels, minlength=3)
        if sizes.min() >= low and sizes.max() <= high:
            best = min(best, cost[np.arange(6), labels].sum())
    found = clustering.assign(cost, low, high)
    sizes = np.bincount(found, minlength=3)
    assert low <= sizes.min() <= sizes.max() <= high
    assert cost[np.arange(6), found].sum() == pytest.approx(best)


def blobs(sizes: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    truth = torch.tensor([k for k, n in enumerate(sizes) for _ in range(n)])
    centres = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0], [0.0, -5.0]])
    return centres[truth] + 0.5 * torch.randn(len(truth), 2, generator=torch.Generator().manual_seed(seed)), truth


@pytest.mark.parametrize("balance", ["equal", "bounded", "none"])
@pytest.mark.parametrize("seed", range(3))
def test_separated_blobs_are_recovered(balance: str, seed: int) -> None:
    sizes = [6, 6, 6, 6] if balance == "equal" else [3, 12, 5, 4]
    means, truth = blobs(sizes, seed)
    found = clustering.balanced_kmeans(means, 4, balance, torch.Generator().manual_seed(seed)).labels
    assert len({(int(a), int(b)) for a, b in zip(truth, found, strict=True)}) == 4


def test_the_same_generator_gives_the_same_clusters_and_a_good_start_is_kept() -> None:
    means, truth = blobs([5, 5, 5, 5])
    one, two = (clustering.balanced_kmeans(means, 4, "equal", torch.Generator().manual_seed(7)) for _ in range(2))
    assert (one.labels == two.labels).all()
    start = torch.stack([means[truth == k].mean(0) for k in range(4)])
    kept = clustering.balanced_kmeans(means, 4, "none", torch.Generator().manual_seed(0), start, restarts=0)
    assert (kept.labels == truth).all()
    torch.testing.assert_close(kept.centroids, start)


@given(st.permutations(range(4)), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_matching_keeps_indices(order: list[int], seed: int) -> None:
    means, truth = blobs([4, 5, 6, 7], seed)
    centroids = torch.stack([means[truth == k].mean(0) for k in range(4)])
    anchors = centroids + 0.3 * torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))
    place = torch.tensor(order)  # cluster k is called place[k] now
    moved = torch.empty_like(centroids)
    moved[place] = centroids
    found = clustering.relabel(Clusters(place[truth], moved), anchors)
    assert (found.labels == truth).all()
    torch.testing.assert_close(found.centroids, centroids)


@pytest.mark.parametrize("groups", [2, 3, 5, 8])
def test_the_number_of_clusters_is_found_where_they_are_apart(groups: int) -> None:
    g = torch.Generator().manual_seed(groups)
    centres = 6 * torch.nn.functional.normalize(torch.randn(groups, 16, generator=g), dim=-1)
    means = centres[torch.arange(60) % groups] + 0.4 * torch.randn(60, 16, generator=g)
    assert choose_clusters(means, "bounded", g) == groups
    assert choose_clusters(means, "bounded", g, most=2) == 2
    assert choose_clusters(means[:2], "none", g) == 1


def by_linear_programme(distance: np.ndarray, low: int, high: int) -> float:
    """The cost of the cheapest assignment within the bounds, found another way."""
    users, clusters = distance.shape
    sizes = np.tile(np.eye(clusters), users)
    found = linprog(
        distance.ravel(),
        A_ub=np.concatenate([sizes, -sizes]),
        b_ub=np.repeat([high, -low], clusters),
        A_eq=np.kron(np.eye(users), np.ones(clusters)),
        b_eq=np.ones(users),
    )
    return float(found.fun)


@given(st.integers(8, 60), st.integers(2, 8), st.sampled_from(["equal", "bounded"]), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_assignment_is_the_linear_programmes_from_any_start(
    users: int, clusters: int, balance: str, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    distance = generator.random((users, clusters)) + np.arange(clusters)  # cluster 0 is the nearest of most
    low, high = clustering.size_bounds(users, clusters, balance)
    best = by_linear_programme(distance, low, high)
    for start in (None, generator.integers(0, clusters, users)):
        found = clustering.assign(distance, low, high, start)
        sizes = np.bincount(found, minlength=clusters)
        assert low <= sizes.min() <= sizes.max() <= high
        assert distance[np.arange(users), found].sum() == pytest.approx(best, rel=1e-9)


def test_users_in_one_place_are_divided_as_the_bounds_demand() -> None:
    found = clustering.assign(np.zeros((20, 4)), 5, 5)
    assert np.bincount(found).tolist() == [5, 5, 5, 5]


def test_many_users_need_no_memory_for_every_pair_of_them() -> None:
    generator = np.random.default_rng(0)
    distance = generator.random((10_000, 4)) + 0.3 * np.arange(4)
    tracemalloc.start()
    found = clustering.assign(distance, *clustering.size_bounds(10_000, 4, "equal"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (np.bincount(found) == 2500).all()
    assert peak < 10 * distance.nbytes
