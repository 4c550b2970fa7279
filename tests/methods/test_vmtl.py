"""VMTL, and the annealed temperature that it uses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedvpa.evaluation.experiment import run_method
from fedvpa.federation import rounds
from fedvpa.methods.base import log_counts
from fedvpa.variational import gaussian
from toy import method_of, settings, world


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("vmtl", {}, [1.0, 0.875, 0.75, 0.625, 0.5]),
        ("vmtl", {"method__tau": 2.0}, [2.0, 1.75, 1.5, 1.25, 1.0]),
        ("vmtl", {"method__tau_final": 0.2}, [1.0, 0.8, 0.6, 0.4, 0.2]),
        ("fedvpa-gp", {}, [1.0] * 5),
        ("fedvpa-gp", {"method__tau_final": 0.5}, [1.0, 0.875, 0.75, 0.625, 0.5]),
    ],
)
def test_the_temperature_falls_linearly_to_the_last_round(
    name: str, overrides: dict[str, float], expected: list[float]
) -> None:
    config = settings(federation__rounds=5, **overrides)
    method = method_of(world(config), name)
    download = method.broadcast(method.init_server(torch.Generator().manual_seed(0)))
    found = [method.tau(replace(download, round=r)) for r in range(5)]
    assert found == pytest.approx(expected)
    assert method.tau(replace(download, round=5)) == pytest.approx(expected[-1])  # after training


def test_the_prior_is_one_gaussian_of_the_other_clients_alone() -> None:
    config = settings(method__prior_start=0.0, method__prior_floor=0.0, method__kl="mc")
    prepared = world(config)
    method = method_of(prepared, "vmtl")
    state = rounds.train(method, config, prepared.clients)
    server = state.server
    counts = torch.tensor([10, 10, 10, 10, 10, 0])
    download = replace(method.broadcast(server), counts=counts)
    ids = torch.tensor([1])
    batch = prepared.clients.batch(ids)
    noise = rounds.round_noise(method, config, prepared.clients, ids, 3)
    theta = {k: v.unsqueeze(0) for k, v in server.theta.items()}
    context = (noise.rank[:, 0] < 3) & batch.mask
    log_pi, gumbel = state.private["log_pi"][ids], noise.gumbel[:, 0]
    terms, _ = method.terms(theta, {"log_pi": log_pi}, batch, context, noise.normal[:, 0], gumbel, download)

    tau = 0.5  # after the last round
    logits = (log_pi[0] + log_counts(counts, log_pi.dtype) + gumbel[0]) / tau
    peers = torch.tensor([0, 2, 3, 4])
    w = logits[peers].softmax(-1).unsqueeze(-1)
    mean = (w * server.means[peers]).sum(0)
    var = (w * (server.variances[peers] + server.means[peers] ** 2)).sum(0) - mean**2
    q = method.posterior(theta, method_embedding(theta, batch.x), batch.y, context)
    expected = gaussian.kl(q, gaussian.Gaussian(mean, var.log()))
    torch.testing.assert_close(terms.kl, expected)
    assert (terms.ortho == 0).all()
    assert "prototypes" not in server.theta


def method_embedding(theta: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    a, b = torch.nn.functional.gelu(x @ theta["features.weight"].mT + theta["features.bias"].unsqueeze(-2)).chunk(2, -2)
    return a - b


def test_without_any_peer_the_prior_is_standard() -> None:
    prepared = world(settings(method__prior_start=0.0))
    method = method_of(prepared, "vmtl")
    download = method.broadcast(method.init_server(torch.Generator().manual_seed(0)))
    assert download.prior_active
    mixture, _ = method.prior(torch.zeros(1, 6).double(), torch.tensor([2]), None, download)
    assert mixture.log_weights[0].exp().tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_it_learns_two_opposite_rules() -> None:
    config = settings(
        federation__clients=12,
        federation__sampled_clients=6,
        federation__rounds=30,
        federation__local_steps=10,
        federation__learning_rate=0.005,
        federation__server_learning_rate=0.5,
        federation__dtype="float32",
        model__latent_dim=8,
        model__hidden_dim=32,
        model__encoder_dim=32,
    )
    found = run_method(world(config), "vmtl")
    (row,) = (r for r in found.rows if r["population"] == "unseen" and r["context_size"] == 8 and r["default"])
    assert row["accuracy"] > 0.8
    assert row["switch_gap"] > 0.6
    assert 1 < row["effective_components"] < 11
