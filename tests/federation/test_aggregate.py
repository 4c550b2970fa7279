"""Averages and server optimisers against hand computations and torch.optim."""

import pytest
import torch

from fedvpa.federation.aggregate import ServerOptimizer, concatenate, weighted_change
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


def test_adam_is_fedadam_without_bias_correction() -> None:
    w = THETA["w"].clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for change in changes(5):
        m, v = 0.9 * m + 0.1 * change, 0.99 * v + 0.01 * change**2
        w = w + 0.5 * m / (v.sqrt() + 1e-3)
    torch.testing.assert_close(run(ServerOptimizer("adam", 0.5)), w)


def test_a_step_does_not_write_into_its_inputs() -> None:
    theta, state = {"w": THETA["w"].clone()}, {"m.w": torch.zeros(2, 3).double(), "v.w": torch.zeros(2, 3).double()}
    ServerOptimizer("adam", 0.5).step(theta, {"w": changes(1)[0]}, state)
    assert (theta["w"] == 1).all()
    assert not state["m.w"].any()
    assert not state["v.w"].any()


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
