"""`fedvpa train`: what a run folder holds, and that an interruption changes nothing about it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import Cli
from fedvpa.apps import training
from fedvpa.apps.progress import RoundProgress
from fedvpa.apps.runs import RunFolder, opened
from fedvpa.config import load_config
from fedvpa.evaluation.result_files import read_metrics, read_results
from fedvpa.federation import checkpoint
from fedvpa.selector import Selector

TIMES = ("seconds", "seconds_per_round")


def untimed(value: Any) -> Any:
    """Results without wall-clock times, which differ from run to run."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in TIMES and k != "environment"}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def assert_same_run(one: Path, two: Path) -> None:
    assert untimed(read_results(one / "results.json")) == untimed(read_results(two / "results.json"))
    assert untimed(read_metrics(one / "metrics.jsonl")) == untimed(read_metrics(two / "metrics.jsonl"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


@pytest.fixture
def at_round(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes something happen after a round."""
    original = RoundProgress.update

    def make(round: int, action: Any) -> None:
        def update(self: RoundProgress, report: Any, values: Any) -> None:
            original(self, report, values)
            if report.round == round:
                action()

        monkeypatch.setattr(RoundProgress, "update", update)

    yield make
    monkeypatch.undo()


def test_run_folder(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    files = {"config.yaml", "model.safetensors", "model.json", "metrics.jsonl", "results.json", "report.html"}
    files.add("fingerprint.json")
    assert names == files | {"checkpoints", "tensorboard"}
    assert [r["round"] for r in read_metrics(finished / "metrics.jsonl")] == list(range(1, 9))
    rows = read_results(finished / "results.json")["rows"]
    assert {r["population"] for r in rows} == {"seen", "unseen"}
    assert {r["context_size"] for r in rows} == {0, 1, 2, 4, 8, 16}
    model = json.loads((finished / "model.json").read_text())
    assert set(model["default_inference"]) == {"0", "1", "2", "4", "8", "16"}
    assert model["groups"] == ["longer", "shorter"]


def test_tensorboard_reads_the_events(finished: Path) -> None:
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    losses = [r["loss"] for r in read_metrics(finished / "metrics.jsonl")]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(losses)
    assert [e.step for e in events.Scalars("validation/accuracy")] == [4, 8]


def test_output_is_a_table_and_the_report(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("train", experiment, "federation.rounds=3", "--out", tmp_path / "r", "--json", tmp_path / "t.json")
    assert done.code == 0
    assert f"Report: {tmp_path / 'r' / 'report.html'}" in done.out
    assert "fedvpa-gp" in done.out
    assert "round 3/3" in done.err
    tables = json.loads((tmp_path / "t.json").read_text())
    assert tables["main"][0]["method"] == "fedvpa-gp"


def test_default_folder(experiment: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("train", experiment, "federation.rounds=1", "method.name=fedbt", "output.tensorboard=false")
    assert done.code == 0
    assert "writing to runs/tiny-fedbt" in done.err
    assert (tmp_path / "runs/tiny-fedbt/report.html").is_file()
    assert not (tmp_path / "runs/tiny-fedbt/tensorboard").exists()


@pytest.mark.parametrize("name", ["local", "oracle", "fedpdpo"])
def test_methods_whose_users_have_models_of_their_own_leave_no_selector(
    experiment: Path, tmp_path: Path, cli: Cli, name: str
) -> None:
    done = cli("train", experiment, f"method.name={name}", "--out", tmp_path / "r")
    assert done.code == 0
    assert "no single selector" in done.err
    assert not (tmp_path / "r" / "model.json").exists()
    assert cli("personalize", tmp_path / "r", "--examples", "x", "--out", "y").err.startswith("error: ")


def test_a_selector_of_several_models_is_one_selector_to_its_users(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    options = ["method.selectors=2", "method.regroup_every=2", "--out", tmp_path / "r"]
    assert cli("train", experiment, "method.name=fedbiscuit", *options).code == 0
    selector = Selector.from_pretrained(tmp_path / "r")
    assert {k.split("/")[0] for k in selector.parameters.theta} == {"0", "1"}
    p, back = (
        selector.prefer("Question 3 of many?", "No.", "Yes."),
        selector.prefer("Question 3 of many?", "Yes.", "No."),
    )
    assert p + back == pytest.approx(1, abs=1e-5)
    assert p != 0.5


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_resume_goes_on_to_the_same_bits(
    experiment: Path, finished: Path, tmp_path: Path, cli: Cli, at_round: Any, signum: int, code: int
) -> None:
    at_round(3, lambda: signal.raise_signal(signum))
    done = cli("train", experiment, "--out", tmp_path / "r")
    assert done.code == code
    assert f"--out {tmp_path / 'r'} --resume" in done.err.splitlines()[-1]
    assert checkpoint.checkpoints(tmp_path / "r/checkpoints")[0].name == "round-000003"
    assert not (tmp_path / "r/results.json").exists()
    done = cli("train", experiment, "--out", tmp_path / "r", "--resume")
    assert done.code == 0
    assert "resuming after round 3 of 8" in done.err
    assert_same_run(tmp_path / "r", finished)


def test_a_death_without_warning_goes_back_to_the_checkpoint(
    experiment: Path, finished: Path, tmp_path: Path, cli: Cli, at_round: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise RuntimeError("power cut")

    at_round(5, die)
    with pytest.raises(RuntimeError, match="power cut"):
        cli("train", experiment, "--out", tmp_path / "r")
    assert len(read_metrics(tmp_path / "r/metrics.jsonl")) == 5
    with (tmp_path / "r/metrics.jsonl").open("a") as f:
        f.write('{"half')
    flawed = checkpoint.checkpoints(tmp_path / "r/checkpoints")[0] / "state.json"
    flawed.write_text("{")
    monkeypatch.undo()
    done = cli("train", experiment, "--out", tmp_path / "r", "--resume", "output.checkpoint_every=3")
    assert done.code == 0, done.err
    assert "round-000004: the checkpoint is damaged (not readable)" in done.err
    assert "resuming after round 2 of 8" in done.err
    assert_same_run(tmp_path / "r", finished)


def test_interrupted_in_the_final_evaluation(
    experiment: Path, finished: Path, tmp_path: Path, cli: Cli, at_round: Any
) -> None:
    at_round(8, lambda: signal.raise_signal(signal.SIGTERM))
    assert cli("train", experiment, "--out", tmp_path / "r").code == 143
    assert cli("train", experiment, "--out", tmp_path / "r", "--resume").code == 0
    assert_same_run(tmp_path / "r", finished)


def test_resuming_a_finished_run_says_so(experiment: Path, finished: Path, cli: Cli) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    done = cli("train", experiment, "--out", finished, "--resume")
    assert done.code == 0
    assert "this run is finished" in done.err
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_resuming_with_another_configuration_names_the_key(experiment: Path, finished: Path, cli: Cli) -> None:
    done = cli("train", experiment, "method.beta=0.5", "--out", finished, "--resume")
    assert done.code == 2
    assert done.err == (
        f"error: {finished}: method.beta: the run there has 0.01, this configuration 0.5; "
        "go on with the same configuration, choose another folder, or use --overwrite\n"
    )


def test_overwrite_replaces_the_run_and_nothing_else(
    experiment: Path, finished: Path, tmp_path: Path, cli: Cli
) -> None:
    run = shutil.copytree(finished, tmp_path / "r")
    (run / "notes.txt").write_text("mine")
    assert cli("train", experiment, "--out", run).code == 2
    done = cli("train", experiment, "federation.rounds=2", "--out", run, "--overwrite")
    assert done.code == 0
    assert len(read_metrics(run / "metrics.jsonl")) == 2
    assert [p.name for p in checkpoint.checkpoints(run / "checkpoints")] == ["round-000002"]
    assert (run / "notes.txt").read_text() == "mine"


def test_bad_data_leaves_the_old_run_alone(experiment: Path, finished: Path, tmp_path: Path, cli: Cli) -> None:
    run = shutil.copytree(finished, tmp_path / "r")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    done = cli("train", experiment, f"data.path={tmp_path / 'bad.jsonl'}", "--out", run, "--overwrite")
    assert done.code == 2
    assert_same_run(run, finished)
    assert cli("train", experiment, f"data.path={tmp_path / 'bad.jsonl'}", "--out", tmp_path / "n").code == 2
    assert not (tmp_path / "n").exists()


def test_one_process_at_a_time(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    config = load_config(experiment)
    with opened(RunFolder(tmp_path / "r", "new"), config, "train"):
        done = cli("train", experiment, "--out", tmp_path / "r", "--resume")
        assert done.code == 2
        assert "another process is writing here" in done.err


def test_a_full_disk_is_one_line(
    experiment: Path, finished: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

    monkeypatch.setattr(training.checkpoint, "save", full)
    done = cli("train", experiment, "--out", tmp_path / "r")
    assert done.code == 2
    assert (
        done.err.splitlines()[-1] == "error: metrics.jsonl: the disk is full; free some space and go on with --resume"
    )
    monkeypatch.undo()
    assert cli("train", experiment, "--out", tmp_path / "r", "--resume").code == 0
    assert_same_run(tmp_path / "r", finished)


def test_the_configuration_comes_back(experiment: Path, finished: Path, cli: Cli) -> None:
    shown = cli("config", experiment)
    assert yaml.safe_load(shown.out) == yaml.safe_load((finished / "config.yaml").read_text())
    assert cli("config", finished / "config.yaml").out == shown.out
