"""Faults on purpose: each does what it says, sound uploads go on, the client is named, and nothing gets lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedvpa.apps.training import round_record
from fedvpa.config import FAULTS
from fedvpa.evaluation.experiment import fault_counts
from fedvpa.federation import checkpoint, faults, rounds
from fedvpa.federation.reception import receive, take
from toy import method_of, settings, world

REASONS = {
    "nan": "is not finite",
    "inf": "is not finite",
    "shape": "has shape",
    "huge": "max_update_norm",
    "forged-posterior": "deviations from the median",
}
DEFENCE = {"defence__reject": True, "defence__posterior_outlier": 8.0}


def run(name: str = "fedvpa-gp", until: int | None = None, **overrides: Any) -> tuple[Any, ...]:
    """A training of 8 clients, all sampled, of whom a quarter is faulty: config, prepared, state, reports."""
    given = {"federation__clients": 8, "federation__sampled_clients": 8, "faults__clients": 0.25}
    given |= {"method__prior_start": 0.25, "method__ortho_start": 0.25}
    config = settings(**given | overrides)
    prepared = world(config)
    method, reports = method_of(prepared, name), []
    state = rounds.start(method, config, len(prepared.clients))
    while state.server.round < (until or config.federation.rounds):
        state, report = rounds.one_round(method, config, prepared.clients, state)
        reports.append(report)
    return config, prepared, state, reports


def same(one: Any, two: Any) -> bool:
    return all((one.server.theta[k] == v).all() for k, v in two.server.theta.items())


@pytest.mark.parametrize("kind", FAULTS)
def test_every_kind_is_injected_counted_and_survived(kind: str) -> None:
    config, _, state, reports = run(faults__kinds=[kind], **DEFENCE)
    faulty = faults.faulty_clients(config, 8)
    assert len(faulty) == 2
    assert state.server.round == 4
    assert all(v.isfinite().all() for v in state.server.theta.values())
    for report in reports:
        assert report.faults[f"injected/{kind}"] == 2
        if kind in REASONS:
            assert report.faults["rejected"] == 2
            assert set(report.rejected) == set(faulty)
            assert all(REASONS[kind] in why for why in report.rejected.values())
        else:
            assert report.rejected == {}
        lost = report.faults.get("silent", 0) + report.faults.get("failed", 0)
        assert lost == (2 if kind in faults.LOST else 0)
    unheard = state.server.counts == 0
    assert unheard.nonzero().flatten().tolist() == (sorted(faulty) if kind in {*REASONS, *faults.LOST} else [])


@pytest.mark.parametrize("kind", ["drop-out", "nan", "shape"])
def test_a_round_without_the_faulty_is_that_of_the_others_alone(kind: str) -> None:
    config, prepared, _, _ = run(until=1, method__ortho_start=1)
    broken, _, state, _ = run(until=1, faults__kinds=[kind], method__ortho_start=1, **DEFENCE)
    method = method_of(prepared)
    begin = rounds.start(method, config, 8)
    upload, _ = rounds.run_clients(method, config, prepared.clients, begin, torch.arange(8))
    keep = torch.tensor([i not in faults.faulty_clients(broken, 8) for i in range(8)])
    theta, _ = rounds.server_step(rounds.server_optimizer(config), begin.server.theta, take(upload, keep), {})
    for k, v in theta.items():
        torch.testing.assert_close(state.server.theta[k], v)


@pytest.mark.parametrize("kind", ["slow", "crash", "drop-out"])
def test_private_state_after_a_round_that_did_not_come_to_an_end(kind: str) -> None:
    config, _, state, _ = run(faults__kinds=[kind], method__prior_start=0)
    faulty = torch.tensor(list(faults.faulty_clients(config, 8)))
    moved = (state.private["log_pi"][faulty] != 0).any()
    assert moved == (kind == "slow")
    others = torch.ones(8, dtype=torch.bool).index_fill(0, faulty, False)
    assert (state.private["log_pi"][others] != 0).any(-1).all()


def test_lies_are_what_they_say() -> None:
    config, prepared, state, _ = run(until=2)
    method = method_of(prepared)
    first = method.init_server(torch.Generator().manual_seed(0)).theta
    ids = torch.arange(8)
    upload, _ = rounds.run_clients(method, config, prepared.clients, state, ids)

    def lied(kind: str) -> Any:
        parts = faults.inject(config, state.server, first, upload, {3: kind})
        assert [p.ids.tolist() for p in parts] == [[0, 1, 2, 4, 5, 6, 7], [3]]
        return parts[1]

    for k, v in state.server.theta.items():
        change = upload.theta[k][3] - v
        torch.testing.assert_close(lied("scaled").theta[k][0] - v, 10 * change)
        torch.testing.assert_close(lied("sign-flip").theta[k][0] - v, -10 * change)
        torch.testing.assert_close(lied("stale").theta[k][0] - first[k], change)
    assert (lied("forged-posterior").means.abs() == 10).all()
    flipped = prepared.clients.flipped(torch.tensor([3]))
    assert (flipped.y[3] == -prepared.clients.y[3]).all()
    assert (flipped.y[4] == prepared.clients.y[4]).all()
    trained, _ = rounds.run_clients(method, config, flipped, state, ids)
    torch.testing.assert_close(trained.means[3], -upload.means[3])  # an odd encoder mirrors the posterior


def test_without_any_sound_upload_a_round_changes_nothing() -> None:
    config, _, state, reports = run(faults__kinds=["nan"], faults__clients=1.0, **DEFENCE)
    begin = rounds.start(method_of(world(config)), config, 8)
    assert state.server.round == 4
    assert same(state, begin)
    assert reports[0].faults == {"rejected": 8, "injected/nan": 8}


def test_nobody_claims_more_examples_than_in_round_0() -> None:
    config, prepared, state, _ = run(until=1, **DEFENCE)
    method = method_of(prepared)
    upload, _ = rounds.run_clients(method, config, prepared.clients, state, torch.arange(8))
    boast = replace(upload, counts=upload.counts.index_fill(0, torch.tensor([5]), 999))
    announced = prepared.clients.counts
    assert receive(method, state.server, [upload], config, announced).rejected == {}
    found = receive(method, state.server, [boast], config, announced)
    assert found.rejected == {5: "counts is above the number of pairs of round 0"}
    assert found.upload is not None
    assert found.upload.ids.tolist() == [0, 1, 2, 3, 4, 6, 7]


def test_rejection_goes_together_with_privacy() -> None:
    """An upload then has no metrics, one example, and a change within the clip."""
    private = {"privacy__clip": 0.05, "privacy__posterior_clip": 1.0, **DEFENCE}
    *_, reports = run(faults__kinds=["scaled"], **private)
    assert {len(r.rejected) for r in reports} == {2}
    assert all("privacy.clip" in why for r in reports for why in r.rejected.values())


@pytest.mark.parametrize("name", ["fedbt", "fedbiscuit", "fedpdpo", "vmtl", "fedvpl"])
def test_other_methods_survive_too(name: str) -> None:
    kinds = ["nan", "shape", "huge", "stale", "crash", "label-flip", "sign-flip", "scaled"]
    overrides = {"faults__kinds": kinds, "faults__clients": 1.0, "federation__aggregation": "median"}
    _, _, state, reports = run(name, **overrides, **DEFENCE)
    assert all(v.isfinite().all() for v in state.server.theta.values())
    assert {len(r.rejected) for r in reports} == {3}
    assert all(r.faults["failed"] == 1 for r in reports)


def test_rejection_without_faults_changes_no_bit() -> None:
    plain, guarded = run()[2], run(**DEFENCE)[2]
    assert same(plain, guarded)
    assert guarded.faults == {}


def test_both_engines_have_the_same_faults() -> None:
    overrides = {"faults__kinds": list(FAULTS), "faults__clients": 1.0, "faults__rate": 0.5, **DEFENCE}
    _, _, stacked, one = run(**overrides)
    _, _, looped, two = run(federation__engine="loop", **overrides)
    assert [(r.faults, r.rejected) for r in one] == [(r.faults, r.rejected) for r in two]
    assert len({tuple(sorted(r.faults)) for r in one}) > 1  # with rate 0.5 not the same ones in every round
    for k, v in looped.server.theta.items():
        torch.testing.assert_close(stacked.server.theta[k], v, atol=1e-9, rtol=0)


def test_counts_go_on_from_a_checkpoint_and_into_results(tmp_path: Path) -> None:
    overrides = {"faults__kinds": ["nan", "slow"], **DEFENCE}
    config, prepared, middle, _ = run(until=2, **overrides)
    checkpoint.save(tmp_path, middle, {})
    loaded = checkpoint.load(tmp_path)[0]
    rest = rounds.train(method_of(prepared), config, prepared.clients, loaded)
    whole = run(**overrides)
    assert same(rest, whole[2])
    assert fault_counts(rest) == fault_counts(whole[2]) == {"lost_uploads": 4, "rejected_uploads": 4}
    record = round_record(config, whole[3][0], None)
    assert record["faults"] == {"silent": 1, "rejected": 1, "injected/nan": 1, "injected/slow": 1}
    assert all("is not finite" in why for why in record["rejected"].values())
    assert round_record(config, run(until=1)[3][0], None)["faults"] is None


def test_a_training_from_the_command_line_reports_them(cli: Any, experiment: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(experiment.read_text())
    tree["faults"], tree["defence"] = {"kinds": ["inf"], "clients": 0.25}, {"reject": True}
    (tmp_path / "faulty.yaml").write_text(yaml.safe_dump(tree))
    assert cli("train", tmp_path / "faulty.yaml", "--out", tmp_path / "run").code == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    total = sum((line["faults"] or {}).get("rejected", 0) for line in lines)
    assert total > 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert {r["rejected_uploads"] for r in rows} == {total}
