"""`fedvpa train` with noise: epsilon on the way, in the results, in the table's notes and in the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

from conftest import Cli
from fedvpa.evaluation.result_files import read_metrics

NOISE = ("clip=0.5", "noise=2", "posterior_clip=2", "posterior_noise=3", "moments_clip=50", "moments_noise=10")


def test_epsilon_is_shown_wherever_a_training_is(experiment: Path, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "private"
    ended = cli("train", experiment, *(f"privacy.{n}" for n in NOISE), "--out", run)
    assert ended.code == 0
    results = json.loads((run / "results.json").read_text())
    (epsilon,) = {row["epsilon"] for row in results["rows"]}
    assert 1 < epsilon < 1000
    assert f"epsilon {epsilon:.3g}" in ended.err
    note = f"fedvpa-gp {epsilon:.3g}"
    assert any(note in text for text in results["notes"])
    assert note in (run / "report.html").read_text()
    records = read_metrics(run / "metrics.jsonl")
    spent = [r["epsilon"] for r in records]
    assert spent == sorted(spent)
    assert spent[-1] == epsilon
    assert {r["loss"] for r in records} == {None}  # what a client's loss was stays with the client


def test_without_noise_there_is_no_bound_and_without_clipping_no_word_of_it(
    experiment: Path, finished: Path, cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "clipped"
    ended = cli("train", experiment, "privacy.clip=0.5", "--out", run)
    assert ended.code == 0
    assert re.search(r"epsilon inf", ended.err)
    results = json.loads((run / "results.json").read_text())
    assert {row["epsilon"] for row in results["rows"]} == {None}
    assert any("fedvpa-gp without bound" in text for text in results["notes"])
    plain = json.loads((finished / "results.json").read_text())
    assert {row["epsilon"] for row in plain["rows"]} == {None}
    assert not any("epsilon" in text for text in plain["notes"])


def test_secret_noise_cannot_be_drawn_again_so_such_a_run_is_not_resumed(
    experiment: Path, cli: Cli, tmp_path: Path
) -> None:
    run, secret = tmp_path / "secret", [*(f"privacy.{n}" for n in NOISE), "privacy.secret_noise=true"]
    assert cli("train", experiment, *secret, "--out", run).code == 0
    assert "nothing to do" in cli("train", experiment, *secret, "--out", run, "--resume").err
    (run / "results.json").unlink()
    ended = cli("train", experiment, *secret, "--out", run, "--resume")
    assert ended.code == 2
    assert "privacy.secret_noise: noise of the operating system cannot be drawn again" in ended.err
