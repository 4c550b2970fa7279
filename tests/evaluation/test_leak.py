"""The leaking protocol: it reads the answer off its input, the honest one cannot, and nothing else uses it."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedvpa.evaluation.experiment import run_method
from fedvpa.evaluation.protocol import measure, measure_leaking
from fedvpa.federation.rounds import round_noise
from toy import method_of, settings, world

TRAINING = {
    "federation__rounds": 60,
    "federation__local_optimizer": "sgd",
    "federation__learning_rate": 0.1,
    "federation__server_optimizer": "adam",
    "federation__server_learning_rate": 0.01,
    "federation__context_pairs": 1,
}


def test_the_leak_follows_whatever_the_labels_say() -> None:
    """Exchanging every query label changes no text, yet the leaking accuracy stays; the honest one mirrors."""
    prepared = world(settings(evaluation__protocol="pair-leak", **TRAINING))
    run = run_method(prepared, "fedvpl")
    panel = prepared.panels["unseen"]
    exchanged = replace(panel, query_y=-panel.query_y)
    as_labelled = measure_leaking(run.predictor, panel, "amortised").values["accuracy"]
    against = measure_leaking(run.predictor, exchanged, "amortised").values["accuracy"]
    assert as_labelled > 0.8
    assert abs(as_labelled - against) < 1e-9
    honest = [measure(run.predictor, p, 4, "amortised", False).values["accuracy"] for p in (panel, exchanged)]
    assert abs(sum(honest) - 1) < 1e-9


def test_rows_of_the_leaking_protocol_have_no_context() -> None:
    run = run_method(world(settings(evaluation__protocol="pair-leak")), "fedvpa-gp")
    assert {r["context_size"] for r in run.rows} == {None}
    assert {r["inference"] for r in run.rows} == {"amortised", "mixture"}
    assert all(r["switch_gap"] is None and r["flip_rate"] is None for r in run.rows)
    for population in ("seen", "unseen"):
        assert sum(r["default"] for r in run.rows if r["population"] == population) == 1


def test_the_leak_is_the_pair_itself() -> None:
    """In training each pair's posterior comes from that pair alone."""
    prepared = world(settings(evaluation__protocol="pair-leak"))
    method = method_of(prepared, "fedvpl")
    ids = torch.arange(2)
    batch = prepared.clients.batch(ids)
    noise = round_noise(method, prepared.config, prepared.clients, ids, 0)
    state = method.init_server(torch.Generator().manual_seed(0))
    theta = {k: v.expand(2, *v.shape) for k, v in state.theta.items()}
    none = torch.zeros_like(batch.mask)
    download = method.broadcast(state)
    before, _ = method.terms(theta, {}, batch, none, noise.normal[:, 0], None, download)
    moved = batch._replace(x=batch.x.clone(), y=batch.y.clone())
    moved.y[:, 0] = -moved.y[:, 0]
    after, _ = method.terms(theta, {}, moved, none, noise.normal[:, 0], None, download)
    # The encoder is odd and there is no common direction yet: label and latent turn over together.
    assert torch.allclose(before.kl, after.kl)
    assert (before.kl > 0).all()
    assert before.ortho.eq(0).all()
