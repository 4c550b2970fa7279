"""Whether z is used: clusters, posteriors and prior weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.metrics import adjusted_rand_score, silhouette_score

from fedvpa.evaluation import diagnostics
from fedvpa.evaluation.experiment import Prepared
from fedvpa.federation import rounds
from fedvpa.federation.rounds import TrainingState
from fedvpa.variational import gaussian
from toy import method_of, settings, world

TRUTH = torch.tensor([0, 1, 0, 1, 0, 1])


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return world(settings(method__prior_start=0, method__ortho_start=0))


@pytest.fixture(scope="module")
def trained(prepared: Prepared) -> tuple[Any, TrainingState]:
    method = method_of(prepared)
    return method, rounds.train(method, prepared.config, prepared.clients)


def test_prior_weights_are_rows_of_probabilities_without_the_client_itself(trained: tuple) -> None:
    method, training = trained
    w = diagnostics.prior_weights(method, training)
    assert w.shape == (6, 6)
    torch.testing.assert_close(w.sum(-1), torch.ones(6).double())
    assert (w.diagonal() == 0).all()
    # Without noise (g = 0): the same every time, and equal to the softmax of log pi + log n over the known peers.
    assert (w == diagnostics.prior_weights(method, training)).all()
    server = training.server
    for i in range(6):
        peers = [j for j in range(6) if j != i and server.counts[j] > 0]
        raw = training.private["log_pi"][i, peers].exp() * server.counts[peers]
        torch.testing.assert_close(w[i, peers], raw / raw.sum())


def test_there_are_no_weights_before_an_upload_or_without_the_prior(prepared: Prepared, trained: tuple) -> None:
    method, training = trained
    assert diagnostics.prior_weights(method, rounds.start(method, prepared.config, 6)) is None
    assert diagnostics.prior_weights(method_of(prepared, "fedvpl"), training) is None


def test_weight_metrics_by_hand() -> None:
    weights = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    found = diagnostics.weight_metrics(weights, torch.tensor([0, 1, 0]))
    assert found["effective_components"] == pytest.approx((2 + 1) / 2)
    assert found["same_group_weight"] == pytest.approx((0.5 + 0) / 2)
    assert diagnostics.weight_metrics(weights, torch.tensor([0, -1, 0]))["same_group_weight"] is None
    assert diagnostics.weight_metrics(weights * 0, TRUTH[:3])["effective_components"] is None


def test_structure_is_scikit_learns(trained: tuple) -> None:
    _, training = trained
    labels = torch.tensor([0, 1, 0, 1, 1, -1])
    server = replace(training.server, labels=labels)
    found = diagnostics.structure(server, TRUTH)
    known = labels >= 0
    assert found["cluster_purity"] == pytest.approx(4 / 5)
    assert found["ari"] == pytest.approx(adjusted_rand_score(TRUTH[known], labels[known]))
    assert found["silhouette"] == pytest.approx(silhouette_score(server.means[known], labels[known]))
    nothing = diagnostics.structure(replace(server, labels=torch.full((6,), -1)), TRUTH)
    assert nothing == {"cluster_purity": None, "clusters": None, "ari": None, "silhouette": None}
    assert found["clusters"] == server.in_use == 2
    blind = diagnostics.structure(server, torch.full((6,), -1))
    assert blind["cluster_purity"] is None
    assert blind["ari"] is None
    assert blind["silhouette"] is not None


@pytest.mark.parametrize("name", ["fedvpa-gp", "fedvpl"])
def test_latent_metrics(prepared: Prepared, trained: tuple, name: str) -> None:
    _, training = trained
    predictor = method_of(prepared, name).predictor(training.server, prepared.pool)
    context = prepared.panels["unseen"].context(8)
    found = diagnostics.latent_metrics(predictor, context, seed=0)
    q = predictor.posterior(context)
    standard = float(gaussian.kl(q, gaussian.standard(q.mean)).mean())
    assert found["kl_standard"] == pytest.approx(standard)
    assert found["mean_norm"] == pytest.approx(float((q.mean**2).sum(-1).sqrt().mean()))
    assert found["active_units"] == float((q.mean.var(0) > 0.005).double().mean())
    if name == "fedvpl":
        assert found["kl"] == found["kl_standard"]
    else:
        assert found["kl"] != found["kl_standard"]
        assert found["kl"] > 0
    empty = diagnostics.latent_metrics(predictor, prepared.panels["unseen"].context(0), seed=0)
    assert empty["kl_standard"] == 0
    assert empty["active_units"] == 0


def test_without_z_everybody_gets_the_same_answer(prepared: Prepared, trained: tuple) -> None:
    method, training = trained
    predictor = method.predictor(training.server, prepared.pool)
    # Groups of equal size with opposite labels on the same pairs: one answer for all is right half of the time.
    assert diagnostics.zero_accuracy(predictor, prepared.panels["unseen"]) == pytest.approx(0.5)


def test_figures_hold_what_the_report_draws(prepared: Prepared, trained: tuple) -> None:
    method, training = trained
    predictor = method.predictor(training.server, prepared.pool)
    ids = {p: [c.client_id for c in prepared.data.clients[p]] for p in ("seen", "unseen")}
    ids["clients"] = ids["seen"]
    groups = diagnostics.client_groups(prepared.data.clients["seen"])
    assert groups.tolist() == TRUTH.tolist()
    found = diagnostics.figures(predictor, training, prepared.panels, ids, 4, groups, prepared.data.groups)
    latents = found["latents"]
    assert latents["ids"] == ids["seen"] + ids["unseen"]
    assert latents["populations"] == ["seen"] * 6 + ["unseen"] * 4
    assert latents["groups"] == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    assert len(latents["means"]) == len(latents["log_vars"]) == 10
    assert all(len(m) == 4 for m in latents["means"])
    assert found["prototypes"] == training.server.theta["prototypes"].tolist()
    assert found["group_names"] == ["rule 0", "rule 1"]
    assert len(found["prior_weights"]["weights"]) == 6
    blind = diagnostics.figures(
        predictor, training, {"unseen": prepared.panels["unseen"]}, ids, 4, torch.full((6,), -1), ()
    )
    assert blind["prior_weights"]["groups"] == [None] * 6
    assert set(blind["latents"]["populations"]) == {"unseen"}


def test_unknown_groups_are_minus_one() -> None:
    blind = world(settings(), known=False)
    assert diagnostics.client_groups(blind.data.clients["seen"]).tolist() == [-1] * 6
