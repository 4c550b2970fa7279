"""A whole experiment on the toy: preparation, training, and every row that the results promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedvpa.config import ExperimentConfig
from fedvpa.evaluation import experiment
from fedvpa.evaluation.experiment import Prepared, prepare, run_method
from fedvpa.federation import rounds
from fedvpa.federation.rounds import RoundReport, TrainingState
from fedvpa.preferences.schema import RATING, Client, Judgements
from toy import DIM, preferences, settings, world
from toy_people import laplace_settings, people

SIZES = (0, 1, 2, 4, 8, 16)
LATENT_USE = {"switch_gap", "flip_rate", "active_units", "cluster_purity", "kl"}
PROMISED = LATENT_USE | {"method", "seed", "population", "inference", "default", "context_size", "accuracy"}
PROMISED |= {"worst_group_accuracy", "log_loss", "ece", "bytes_up", "bytes_down", "seconds_per_round"}


def learnable(**overrides: Any) -> ExperimentConfig:
    return settings(
        **{
            "federation__clients": 12,
            "federation__sampled_clients": 6,
            "federation__rounds": 30,
            "federation__local_steps": 10,
            "federation__learning_rate": 0.005,
            "federation__server_learning_rate": 0.5,
            "federation__dtype": "float32",
            "model__latent_dim": 8,
            "model__hidden_dim": 32,
            "model__encoder_dim": 32,
            "evaluation__every": 10,
        }
        | overrides
    )


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return world(learnable())


@pytest.fixture(scope="module")
def run(prepared: Prepared) -> experiment.MethodRun:
    return run_method(prepared, "fedvpa-gp")


def rows_of(run: experiment.MethodRun, **where: Any) -> list[dict[str, Any]]:
    return [r for r in run.rows if all(r[k] == v for k, v in where.items())]


def test_features_are_standardised_by_the_training_clients_alone(prepared: Prepared) -> None:
    data, features = preferences(prepared.config)
    used = torch.cat([c.train.index for c in data.clients["seen"]])
    raw = torch.cat([features.a[used], features.b[used]])
    torch.testing.assert_close(prepared.standardizer.mean, raw.mean(0))
    torch.testing.assert_close(prepared.standardizer.scale, raw.std(0, correction=0))
    torch.testing.assert_close(prepared.pool.x[5, 1], (features.b[5] - raw.mean(0)) / raw.std(0, correction=0))
    assert prepared.moments_bytes == 8 * (1 + 2 * DIM + 3)
    assert set(prepared.panels) == {"seen", "validation", "unseen"}


def test_ratings_are_standardised_by_the_training_clients_alone() -> None:
    config = laplace_settings()
    data, features = people(config, kinds=("rating", "vote"))
    prepared = prepare(config, data, features)

    def judged(clients: tuple[Client, ...]) -> list[Judgements]:
        return [c.judgements for c in clients if c.judgements is not None]

    given = torch.cat([j.value[j.kind == RATING] for j in judged(data.clients["seen"])]).double()
    for found, population in (
        (prepared.clients.judgements.judged, "seen"),
        (prepared.panels["unseen"].judged, "unseen"),
    ):
        for y, j in zip(found.y, judged(data.clients[population]), strict=True):
            rated = j.kind == RATING
            expected = (j.value.double() - given.mean()) / given.std(correction=0)
            torch.testing.assert_close(y[rated], expected[rated], atol=1e-12, rtol=1e-12)
            assert torch.equal(y[~rated], j.value[~rated].double())


def test_the_latent_is_learned_and_used(run: experiment.MethodRun) -> None:
    """Two opposite linear rules: own latents serve unseen users, the opposite's turn their answers over."""
    (row,) = rows_of(run, population="unseen", context_size=8, default=True)
    assert row["accuracy"] > 0.8
    assert row["switch_gap"] > 0.6
    assert row["cluster_purity"] > 0.9
    assert row["zero_accuracy"] == pytest.approx(0.5, abs=0.05)
    (none,) = rows_of(run, population="unseen", context_size=0, default=True)
    assert none["accuracy"] < row["accuracy"] - 0.2


def test_rows_hold_what_is_promised(run: experiment.MethodRun) -> None:
    assert len(run.rows) == len(run.scores) == 2 * 3 * len(SIZES)
    for row, scores in zip(run.rows, run.scores, strict=True):
        assert set(row) >= PROMISED
        assert row["method"] == "fedvpa-gp"
        assert scores.accuracy == pytest.approx(row["accuracy"])
        assert row["bytes_up"] > row["bytes_down"] - 12 * (2 * 8 * 4 + 8) - 100 > 0
        assert (row["flip_rate"] is None) == (row["context_size"] == 0)
    for population in ("seen", "unseen"):
        for size in SIZES:
            chosen = rows_of(run, population=population, context_size=size)
            assert [r["inference"] for r in chosen] == ["amortised", "mixture", "refined"]
            assert sum(r["default"] for r in chosen) == 1
    assert {r["cluster_purity"] for r in run.rows} == {run.rows[0]["cluster_purity"]}


def test_values_at_initialisation_stand_beside_the_trained_ones(run: experiment.MethodRun) -> None:
    (row,) = rows_of(run, population="unseen", context_size=8, inference="amortised")
    assert row["mean_norm"] > row["mean_norm_at_init"]
    assert {"active_units_at_init", "kl_at_init", "flip_rate_at_init"} <= set(row)


def test_reported_bytes_are_those_that_were_uploaded(prepared: Prepared, run: experiment.MethodRun) -> None:
    state = rounds.start(run.method, prepared.config, 12)
    ids = torch.tensor([0, 1])
    upload, _ = rounds.run_clients(run.method, prepared.config, prepared.clients, state, ids)
    assert experiment.upload_bytes(run.method, run.training) == upload.bytes_per_client() == run.rows[0]["bytes_up"]


def test_figures_are_there_for_methods_with_a_latent(run: experiment.MethodRun) -> None:
    assert len(run.figures["latents"]["ids"]) == 12 + 4
    assert len(run.figures["prior_weights"]["weights"]) == 12


def test_callbacks_get_validation_accuracy_when_it_is_due(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "add_rows", lambda *arguments: None)
    config = learnable(federation__rounds=5, evaluation__every=2)
    short = replace(prepared, config=config)
    due: dict[int, Any] = {}

    def note(report: RoundReport, state: TrainingState, values: dict[str, Any] | None) -> None:
        due[report.round] = values

    run_method(short, "fedvpl", on_round=note)
    assert [r for r, v in due.items() if v is not None] == [2, 4, 5]
    assert 0 <= due[2]["worst_group_accuracy"] <= due[2]["accuracy"] <= 1
    assert set(due[5]["group_accuracy"]) == {"rule 0", "rule 1"}


def test_a_run_goes_on_from_a_checkpoint_to_the_same_rows(prepared: Prepared) -> None:
    config = learnable(federation__rounds=4)
    short = replace(prepared, config=config)
    states: list[TrainingState] = []
    # fedbt has no latent to infer, which keeps this short; tests/federation does the same with every part of a state.
    whole = run_method(short, "fedbt", on_round=lambda r, s, v: states.append(s))
    rest = run_method(short, "fedbt", state=states[1], seconds=[0.5, 0.5])
    for one, two in zip(whole.rows, rest.rows, strict=True):
        assert {k: v for k, v in one.items() if k != "seconds_per_round"} == {
            k: v for k, v in two.items() if k != "seconds_per_round"
        }


def test_default_inference_is_the_best_on_validation_clients(prepared: Prepared, run: experiment.MethodRun) -> None:
    every = run.predictor.inferences
    assert len(prepared.choosing) > 1
    assert not torch.equal(prepared.choosing[0].order, prepared.choosing[1].order)
    for size in (1, 8):
        chosen = experiment.choose_inference(run.predictor, every, prepared.choosing, size)
        accuracy = {
            how: sum(
                experiment.measure(run.predictor, panel, size, how, False).values["accuracy"]
                for panel in prepared.choosing
            )
            for how in every
        }
        assert accuracy[chosen] == max(accuracy.values())
        (row,) = rows_of(run, population="unseen", context_size=size, default=True)
        assert row["inference"] == chosen
    assert experiment.choose_inference(run.predictor, every, (), 8) == "amortised"


@pytest.mark.parametrize("name", ["oracle", "oracle-clients", "fedbt"])
def test_methods_without_inference_have_one_row_per_population(prepared: Prepared, name: str) -> None:
    found = run_method(replace(prepared, config=learnable(federation__rounds=2)), name)
    assert [(r["population"], r["inference"], r["context_size"], r["default"]) for r in found.rows] == [
        ("seen", "none", None, True),
        ("unseen", "none", None, True),
    ]
    assert all(set(r) >= PROMISED for r in found.rows)
    assert all(r["flip_rate"] is None and r["kl"] is None for r in found.rows)
    assert (found.rows[0]["bytes_up"] is None) == name.startswith("oracle")


def test_local_gives_a_seen_user_all_of_its_own_pairs(prepared: Prepared) -> None:
    found = run_method(prepared, "local")
    seen = rows_of(found, population="seen")
    assert len({r["accuracy"] for r in seen}) == 1
    unseen = {r["context_size"]: r["accuracy"] for r in rows_of(found, population="unseen")}
    assert unseen[0] == 0.5
    assert unseen[16] > 0.6


def test_central_vpl_has_rows_but_no_traffic(prepared: Prepared) -> None:
    found = run_method(replace(prepared, config=learnable(federation__rounds=2)), "central-vpl")
    assert {r["bytes_up"] for r in found.rows} == {None}
    assert found.rows[0]["seconds_per_round"] > 0


def test_the_switching_test_has_its_own_rows() -> None:
    config = learnable(federation__rounds=2)
    data, features = preferences(config)
    asked = data.clients["unseen"]
    data = replace(data, switching=tuple(replace(c, client_id=f"switching-{i}") for i, c in enumerate(asked)))
    found = run_method(prepare(config, data, features), "fedvpl")
    assert [r["context_size"] for r in found.switching] == [4]
    assert found.switching[0]["pairs"] == 60
    assert 0 <= found.switching[0]["accuracy"] <= 1


def test_unknown_groups_leave_their_metrics_empty() -> None:
    config = learnable(federation__rounds=2, federation__validation_clients=0)
    rounds_seen: list[Any] = []
    found = run_method(world(config, known=False), "fedvpa-gp", on_round=lambda r, s, v: rounds_seen.append(v))
    assert rounds_seen == [None, None]  # nobody to validate on
    row = found.rows[0]
    assert row["default"] is True
    assert row["worst_group_accuracy"] is None
    assert row["switch_gap"] is None
    assert row["cluster_purity"] is None
    assert found.figures["latents"]["groups"][0] is None
