"""Robust aggregation and outlier rules: closed forms, and what liars can do at most."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from fedvpa.federation import robust
from fedvpa.federation.aggregate import ServerOptimizer, server_step
from fedvpa.methods.base import Upload

WEIGHTS = torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6, 5, 3]).double()


def changes(clients: int, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(clients, 3, 2, generator=g).double(),
        "a.bias": torch.randn(clients, 3, generator=g).double(),
    }


@pytest.mark.parametrize("clients", [1, 2, 5, 8])
def test_median_and_trimmed_mean_are_numpys_and_scipys(clients: int) -> None:
    given_changes = changes(clients)
    share = robust.liars(clients, 0.25) / clients
    for k, v in given_changes.items():
        np.testing.assert_allclose(robust.median(given_changes)[k], np.median(v, 0))
        np.testing.assert_allclose(robust.trimmed_mean(given_changes, 0.25)[k], trim_mean(v, share, 0))


@given(st.integers(5, 12), st.floats(-1e6, 1e6), st.integers(0, 99))
@hypothesis_settings(max_examples=30, deadline=None)
def test_liars_cannot_leave_the_range_of_the_honest(clients: int, lie: float, seed: int) -> None:
    rows = changes(clients, seed)
    f = robust.liars(clients, 0.2)
    for v in rows.values():
        v[:f] = lie
    for how in (robust.median(rows), robust.trimmed_mean(rows, 0.2)):
        for k, v in how.items():
            assert (v <= rows[k][f:].max(0).values + 1e-9).all()
            assert (v >= rows[k][f:].min(0).values - 1e-9).all()


def test_krum_leaves_out_those_that_are_far_and_weighs_the_others() -> None:
    rows = changes(10)
    for v in rows.values():
        v *= 0.1
        v[[2, 7]] += 50
    found = robust.krum(rows, WEIGHTS, 0.2)
    keep = torch.tensor([0, 1, 3, 4, 5, 6, 8, 9])
    for k, v in found.items():
        weight = WEIGHTS[keep] / WEIGHTS[keep].sum()
        torch.testing.assert_close(v, torch.tensordot(weight, rows[k][keep], dims=1))


def flowers(strategy: str, rows: dict[str, torch.Tensor], **options: float) -> dict[str, torch.Tensor]:
    """What a strategy of Flower's makes of one reply per client."""
    app, serverapp = pytest.importorskip("flwr.app"), pytest.importorskip("flwr.serverapp")
    identity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
    identity.run_id, identity.node_id, identity.task_id = 1, 1, 1  # a SuperLink would set them
    replies = []
    for i, weight in enumerate(WEIGHTS[: len(next(iter(rows.values())))].tolist()):
        content = app.RecordDict({
            "arrays": app.ArrayRecord({k: app.Array(v[i].numpy()) for k, v in rows.items()}),
            "metrics": app.MetricRecord({"num-examples": weight}),
        })  # fmt: skip
        asked = app.Message(app.RecordDict(), dst_node_id=i + 1, message_type="train")
        asked.metadata.__dict__["_message_id"] = str(i)
        replies.append(app.Message(content, reply_to=asked))
    arrays, _ = getattr(serverapp.strategy, strategy)(**options).aggregate_train(1, replies)
    assert arrays is not None
    return {k: torch.from_numpy(v.numpy()) for k, v in arrays.items()}


@given(st.integers(6, 10), st.sampled_from([0.1, 0.2, 0.3, 0.45]), st.integers(0, 999))
@hypothesis_settings(max_examples=15, deadline=None)
def test_every_rule_is_flowers_own(clients: int, share: float, seed: int) -> None:
    """From 6 clients on: with fewer, Krum counts one neighbour only, and two that are each other's are equally good."""
    rows, f = changes(clients, seed), robust.liars(clients, share)
    krum = {"num_malicious_nodes": f, "num_nodes_to_select": clients - f}
    for ours, theirs in (
        (robust.median(rows), flowers("FedMedian", rows)),
        (robust.trimmed_mean(rows, share), flowers("FedTrimmedAvg", rows, beta=share)),
        (robust.krum(rows, WEIGHTS[:clients], share), flowers("MultiKrum", rows, **krum)),
    ):
        for k, v in ours.items():
            torch.testing.assert_close(v, theirs[k], rtol=1e-9, atol=1e-12)


def test_one_honest_client_is_the_aggregate_of_every_rule() -> None:
    rows = changes(1)
    for found in (robust.median(rows), robust.trimmed_mean(rows, 0.4), robust.krum(rows, WEIGHTS[:1], 0.4)):
        assert all((found[k] == v[0]).all() for k, v in rows.items())


@pytest.mark.parametrize(("how", "rule"), [("median", robust.median), ("mean", None)])
def test_the_servers_step_uses_the_configured_rule(how: str, rule: object) -> None:
    rows = changes(10)
    theta = {k: torch.ones_like(v[0]) for k, v in rows.items()}
    none = torch.zeros(10, 0)
    upload = Upload(torch.arange(10), {k: v + 1 for k, v in rows.items()}, none, none, WEIGHTS.long(), {})
    optimizer = ServerOptimizer("average", 1.0, aggregation=how)
    new, _ = server_step(optimizer, theta, upload, {})
    wanted = (
        robust.median(rows) if rule else {k: torch.tensordot(WEIGHTS / WEIGHTS.sum(), v, 1) for k, v in rows.items()}
    )
    for k, v in new.items():
        torch.testing.assert_close(v, 1 + wanted[k])


def test_forged_posteriors_are_far_and_opposite_users_are_not() -> None:
    g = torch.Generator().manual_seed(0)
    groups = torch.tensor([2.0, -2.0]).repeat(10).unsqueeze(-1)
    means = groups * torch.ones(20, 8) + 0.3 * torch.randn(20, 8, generator=g)
    means[:3] = 40.0
    far = robust.far_posteriors(means[:10], means[10:], 5.0)
    assert far.tolist() == [True] * 3 + [False] * 7
    assert not robust.far_posteriors(means[:2], means[:0], 5.0).any()  # too few to judge


def test_large_updates_are_measured_by_the_rounds_median() -> None:
    norms = torch.tensor([1.0, 1.1, 0.9, 1.0, 30.0])
    assert robust.large_updates(norms, 5).tolist() == [False] * 4 + [True]
    assert not robust.large_updates(norms[-2:], 5).any()
