"""The leaking protocol: it reads the answer off its input, the honest one cannot, and nothing else uses it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedvpa.evaluation.experiment import run_method
from fedvpa.evaluation.protocol import measure, measure_leaking
from fedvpa.federation.rounds import round_noise, train
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


def accuracy(residual: str, order: str, protocol: str, odd: bool = False) -> float:
    """Unseen users' accuracy of fedvpl's amortised inference, with four context pairs where the split is honest."""
    changes = {"model__residual": residual, "data__order": order, "model__odd_encoder": odd}
    config = settings(**TRAINING | changes | {"evaluation__protocol": protocol, "federation__context_pairs": 4})
    prepared = world(config)
    method = method_of(prepared, "fedvpl")
    predictor = method.predictor(train(method, config, prepared.clients).server, prepared.pool)
    panel = prepared.panels["unseen"]
    if protocol == "pair-leak":
        return measure_leaking(predictor, panel, "amortised").values["accuracy"]
    return measure(predictor, panel, 4, "amortised", False).values["accuracy"]


@pytest.mark.parametrize("protocol", ["honest", "pair-leak"])
def test_an_antisymmetric_selector_gives_the_same_answers_in_either_order(protocol: str) -> None:
    random, first = (accuracy("content", order, protocol) for order in ("random", "chosen-first"))
    assert abs(random - first) < 1e-9
    assert random > (0.9 if protocol == "pair-leak" else 0.7)


def test_the_literal_residual_reads_the_label_off_the_order() -> None:
    """With the chosen response always first "a" is always right, so even an honest split leaks."""
    assert accuracy("bias", "chosen-first", "honest") > 0.95
    assert accuracy("bias", "chosen-first", "pair-leak") > 0.95


def test_in_random_order_the_literal_residual_knows_nothing() -> None:
    assert abs(accuracy("bias", "random", "honest") - 0.5) < 0.1
    assert abs(accuracy("bias", "random", "pair-leak") - 0.5) < 0.15


def test_an_odd_encoder_denies_the_literal_residual_the_constant_that_it_needs() -> None:
    """Users who disagree have mirrored latents, so <W, z> cannot be positive for both."""
    assert accuracy("bias", "chosen-first", "pair-leak", odd=True) < 0.7
