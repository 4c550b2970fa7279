"""Every option of the method, as the command line writes it, through a whole experiment: it does what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from fedvpa.config import load_config
from fedvpa.evaluation.experiment import MethodRun, Prepared, run_method
from fedvpa.federation.rounds import RoundReport
from toy import settings, world

BASE = {
    "federation__clients": 8,
    "federation__sampled_clients": 8,
    "federation__rounds": 20,
    "federation__local_steps": 6,
    "federation__learning_rate": 0.01,
    "federation__server_learning_rate": 1.0,
    "federation__server_decay": 0.0,
    "federation__validation_clients": 0,
    "federation__dtype": "float32",
    "model__latent_dim": 8,
    "model__hidden_dim": 32,
    "model__encoder_dim": 32,
    "evaluation__every": 20,
}


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return world(settings(**BASE), ragged=True)


@pytest.fixture(scope="module")
def run_with(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs a method under overrides, which go the way of a command line; the reports of its rounds come with it."""
    file = tmp_path_factory.mktemp("options") / "toy.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(prepared.config.to_yaml())))

    def run(name: str, *overrides: str) -> tuple[MethodRun, list[RoundReport]]:
        reports: list[RoundReport] = []
        given = replace(prepared, config=load_config(file, overrides))
        return run_method(given, name, on_round=lambda report, state, values: reports.append(report)), reports

    return run


def row_of(run: MethodRun, size: int, how: str = "amortised") -> dict[str, Any]:
    found = [r for r in run.rows if r["population"] == "unseen" and r["context_size"] == size and r["inference"] == how]
    assert len(found) == 1
    return found[0]


def test_uniform_weights_are_the_same_for_every_peer(run_with: Any) -> None:
    run, _ = run_with("fedvpl+prior", "method.prior_weights=uniform")
    weights = torch.tensor(run.figures["prior_weights"]["weights"])
    torch.testing.assert_close(weights, (torch.ones(8, 8) - torch.eye(8)) / 7)
    assert row_of(run, 4)["effective_components"] == pytest.approx(7)
    assert row_of(run, 4)["same_group_weight"] == pytest.approx(3 / 7)


def test_sample_weights_are_the_peers_shares_of_the_pairs(run_with: Any, prepared: Prepared) -> None:
    run, _ = run_with("fedvpl+prior", "method.prior_weights=samples")
    peers = prepared.clients.counts.float() * (1 - torch.eye(8))
    weights = torch.tensor(run.figures["prior_weights"]["weights"])
    torch.testing.assert_close(weights, peers / peers.sum(-1, keepdim=True))


def test_gumbel_weights_are_learned_and_sharpen_with_a_lower_temperature(run_with: Any, prepared: Prepared) -> None:
    run, _ = run_with("fedvpl+prior", "method.prior_weights=gumbel")
    start = prepared.clients.counts.float() * (1 - torch.eye(8))
    weights = torch.tensor(run.figures["prior_weights"]["weights"])
    assert (weights - start / start.sum(-1, keepdim=True)).abs().max() > 0.01
    cold, _ = run_with("fedvpl+prior", "method.prior_weights=gumbel", "method.tau=0.2")
    assert row_of(cold, 4)["effective_components"] < row_of(run, 4)["effective_components"]


def test_the_bound_lies_above_the_kl_and_moments_are_neither(run_with: Any) -> None:
    """In the first round with the mixture prior, and its only local step, all estimators see the same posteriors."""
    kl = {}
    for how in ("mc", "bound", "moment"):
        small = ("federation.rounds=4", "federation.local_steps=1", "method.samples=512")
        _, reports = run_with("fedvpl+prior", f"method.kl={how}", *small)
        kl[how], kl[how, "before"] = reports[2].metrics["kl"], reports[1].metrics["kl"]
    assert kl["mc", "before"] == kl["bound", "before"] == kl["moment", "before"]
    assert kl["bound"] > kl["mc"]
    assert len({kl["mc"], kl["bound"], kl["moment"]}) == 3
    assert kl["moment"] > 0


@pytest.mark.parametrize("pooling", ["poe", "mean", "attention"])
def test_every_pooling_learns_from_a_context(run_with: Any, pooling: str) -> None:
    run, _ = run_with("fedvpl", f"model.pooling={pooling}")
    assert ("attention.weight" in run.training.server.theta) == (pooling == "attention")
    few, many = row_of(run, 1), row_of(run, 16)
    assert row_of(run, 0)["kl_standard"] == pytest.approx(0, abs=1e-5)
    assert many["accuracy"] > 0.75
    # Only the product of experts grows surer with the number of pairs; means of experts do not.
    assert (many["kl_standard"] > 2 * few["kl_standard"]) == (pooling == "poe")


def test_the_literal_residual_cannot_express_a_preference_about_content(run_with: Any) -> None:
    content, _ = run_with("fedvpl", "model.residual=content")
    bias, _ = run_with("fedvpl", "model.residual=bias")
    assert row_of(content, 16)["accuracy"] > 0.75
    assert abs(row_of(bias, 16)["accuracy"] - 0.5) < 0.1
    assert bias.training.server.theta["selector.weight"].shape[0] == 1


def test_the_papers_orthogonal_loss_keeps_prototypes_orthogonal(run_with: Any) -> None:
    cosine = {}
    for form in ("ours", "paper"):
        run, reports = run_with("fedvpl+ortho", f"method.ortho={form}", "method.lambda_=1", "method.gamma=1")
        p = torch.nn.functional.normalize(run.training.server.theta["prototypes"], dim=-1)
        cosine[form] = float(p[0] @ p[1])
        assert reports[-1].metrics["ortho"] > 0
        assert reports[0].metrics["ortho"] == 0
    assert abs(cosine["paper"]) < 0.4
    assert cosine["ours"] < -0.6  # two opposite groups have opposite prototypes


def test_the_leaking_protocol_beats_the_ceiling_of_the_honest_one(run_with: Any) -> None:
    run, _ = run_with("fedvpl", "evaluation.protocol=pair-leak")
    assert {r["context_size"] for r in run.rows} == {None}
    leaking = {r["inference"]: r["accuracy"] for r in run.rows if r["population"] == "unseen"}["amortised"]
    honest, _ = run_with("fedvpl", "evaluation.protocol=honest")
    assert leaking > row_of(honest, 1)["accuracy"] + 0.05


@pytest.mark.parametrize("name", ["fedbiscuit", "fedpdpo", "vmtl", "fedvpa-gp+labels"])
def test_every_baseline_has_one_default_per_population_and_size(run_with: Any, name: str) -> None:
    run, reports = run_with(name, "federation.rounds=6")
    assert {r["method"] for r in run.rows} == {name}
    sizes = {None} if name == "fedbiscuit" else {0, 1, 2, 4, 8, 16}
    for population in ("seen", "unseen"):
        rows = [r for r in run.rows if r["population"] == population and r["default"]]
        assert sorted(r["context_size"] or 0 for r in rows) == sorted(s or 0 for s in sizes)
    assert run.rows[0]["bytes_up"] == max(r.bytes_up for r in reports) > 0
    assert run.rows[0]["bytes_down"] >= max(r.bytes_down for r in reports) > 0
