"""Averages and server optimisers against hand computations and torch.optim."""

from dataclasses import replace

import pytest
import torch

from fedvpa.federation.aggregate import ServerOptimizer, concatenate, initial_moments, server_step, weighted_change
from fedvpa.methods.base import Upload


def upload(ids: list[int], values: list[float], counts: list[int]) -> Upload:
    v = torch.tensor(values, dtype=torch.float64)
    theta = {"w": v.reshape(-1, 1, 1).repeat(1, 2, 3), "s": v}
    posterior = v.unsqueeze(-1)
    return Upload(torch.tensor(ids), theta, posterior, posterior**2, torch.tensor(counts), {"loss": -v})


THETA = {"w": torch.full((2, 3), 1.0, dtype=torch.float64), "s": torch.tensor(1.0, dtype=torch.float64)}


def test_change_is_weighted_by_the_numbers_of_examples() -> None:
    change = weighted_change(THETA, upload([0, 1], [2.0, 5.0], [30, 10]))
    expected = (30 * 2 + 10 * 5) / 40 - 1
    torch.testing.assert_close(change["w"], torch.full((2, 3), expected, dtype=torch.float64))
    assert float(change["s"]) == pytest.approx(expected)


def test_fedavg_is_the_average_at_rate_one_and_goes_part_of_the_way_below() -> None:
    change = weighted_change(THETA, upload([0, 1], [2.0, 5.0], [1, 1]))
    for rate, expected in ((1.0, 3.5), (0.3, 1 + 0.3 * 2.5)):
        optimizer = ServerOptimizer("average", rate)
        new, state = optimizer.step(THETA, change, optimizer.init(THETA))
        assert float(new["s"]) == pytest.approx(expected)
        assert state == {}


def changes(steps: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return list(torch.randn(steps, 2, 3, generator=g, dtype=torch.float64))


def run(optimizer: ServerOptimizer, steps: int = 5) -> torch.Tensor:
    theta = {"w": THETA["w"]}
    state = optimizer.init(theta)
    for change in changes(steps):
        theta, state = optimizer.step(theta, {"w": change}, state)
    return theta["w"]


def test_momentum_is_sgd_with_dampened_momentum() -> None:
    w = THETA["w"].clone()
    m = torch.zeros_like(w)
    for change in changes(5):
        m = 0.9 * m + 0.1 * change
        w = w + 0.5 * m
    torch.testing.assert_close(run(ServerOptimizer("momentum", 0.5)), w)


def test_momentum_agrees_with_torch_up_to_the_scale() -> None:
    w = THETA["w"].clone().requires_grad_(True)
    # torch keeps the sum m <- 0.9 m + g, ours the mean; a tenth of the rate makes them equal.
    optimizer = torch.optim.SGD([w], lr=0.05, momentum=0.9)
    for change in changes(5):
        w.grad = -change
        optimizer.step()
    torch.testing.assert_close(run(ServerOptimizer("momentum", 0.5)), w.detach())


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torchs_on_the_negated_change(decay: float) -> None:
    names = {"w.weight": decay, "w.bias": 0.0}  # decay acts on matrices only
    server = ServerOptimizer("adam", 0.05, momentum=0.8, weight_decay=decay)
    theta = {k: THETA["w"].clone() for k in names}
    state = server.init(theta)
    for change in changes(5):
        theta, state = server.step(theta, dict.fromkeys(names, change), state)
    for name, expected_decay in names.items():
        w = THETA["w"].clone().requires_grad_(True)
        betas = (server.momentum, server.second)
        optimizer = torch.optim.AdamW([w], lr=0.05, betas=betas, eps=server.epsilon, weight_decay=expected_decay)
        for change in changes(5):
            w.grad = -change
            optimizer.step()
        torch.testing.assert_close(theta[name], w.detach())


@pytest.mark.parametrize("kind", ["average", "momentum", "adam"])
def test_a_step_does_not_write_into_its_inputs(kind: str) -> None:
    optimizer = ServerOptimizer(kind, 0.5)
    theta = {"w": THETA["w"].clone()}
    state = optimizer.init(theta)
    new, kept = optimizer.step(theta, {"w": changes(1)[0]}, state)
    assert (new["w"] != 1).any()
    assert (theta["w"] == 1).all()
    assert all(not v.any() for v in state.values())
    assert kept.keys() == state.keys()


def test_uploads_are_summed_in_the_order_of_the_ids() -> None:
    # Values so far apart that another order of summation gives another result.
    parts = [([3], [1e16], [1]), ([0], [1.0], [1]), ([7], [-1e16], [1]), ([5], [3.0], [1])]
    orders = ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1])
    joined = [concatenate([upload(*parts[i]) for i in order]) for order in orders]
    sums = [weighted_change(THETA, u) for u in joined]
    for u, s in zip(joined, sums, strict=True):
        assert u.ids.tolist() == [0, 3, 5, 7]
        assert u.means.flatten().tolist() == [1.0, 1e16, 3.0, -1e16]
        assert u.metrics["loss"].tolist() == [-1.0, -1e16, -3.0, 1e16]
        assert (s["w"] == sums[0]["w"]).all()
        assert s["s"] == sums[0]["s"]


@pytest.mark.parametrize("kind", ["average", "momentum", "adam"])
def test_each_of_several_models_steps_as_if_it_were_alone(kind: str) -> None:
    """Two rounds: both models, then the first alone. The second model does not move on its momentum."""
    optimizer = ServerOptimizer(kind, 0.3)
    theta = {f"{k}/{n}": v + k for k in range(2) for n, v in THETA.items()}
    state = initial_moments(optimizer, theta, 2)
    first = replace(upload([0, 1, 2], [2.0, 5.0, 7.0], [30, 10, 5]), model=torch.tensor([1, 0, 1]))
    second = replace(upload([1], [3.0], [10]), model=torch.tensor([0]))
    after, moments = server_step(optimizer, theta, first, state)
    last, kept = server_step(optimizer, after, second, moments)

    alone, own = THETA, optimizer.init(THETA)
    for part in (upload([1], [5.0], [10]), upload([1], [3.0], [10])):
        alone, own = server_step(optimizer, alone, part, own)
    other = {n: v + 1 for n, v in THETA.items()}
    moved, its = server_step(optimizer, other, upload([0, 2], [2.0, 7.0], [30, 5]), optimizer.init(other))
    for k, expected in ((0, alone), (1, moved)):
        for n, v in expected.items():
            torch.testing.assert_close(last[f"{k}/{n}"], v)
    for k, expected in ((0, own), (1, its)):
        assert {n for n in kept if n.startswith(f"{k}/")} == {f"{k}/{n}" for n in expected}
        for n, v in expected.items():
            torch.testing.assert_close(kept[f"{k}/{n}"], v)


def test_uploads_of_several_models_keep_them_apart_from_others() -> None:
    parts = [replace(upload([i], [float(i)], [1]), model=torch.tensor([k])) for i, k in ((3, 1), (0, 2), (1, 0))]
    joined = concatenate(parts)
    assert joined.ids.tolist() == [0, 1, 3]
    assert joined.model is not None
    assert joined.model.tolist() == [2, 0, 1]
