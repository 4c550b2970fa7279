"""A deployment's run folder, over a grid in this process: what it says with privacy on, and what is not resumed."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from conftest import preference_lines
from fake_grid import FakeGrid
from fedvpa.apps.deployed import train_selector
from fedvpa.apps.flower_client import _own
from fedvpa.apps.runs import CONFIG, check_folder
from fedvpa.config import ExperimentConfig, load_config
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import read_metrics
from fedvpa.federation import checkpoint
from fedvpa.network.node import Node
from fedvpa.selector import Selector

PRIVATE = ("clip=0.5", "noise=2", "posterior_clip=2", "posterior_noise=3", "moments_clip=50", "moments_noise=10")


def configured(experiment: Path, *settings: str) -> ExperimentConfig:
    short = ("federation.rounds=6", "federation.clients=4", "method.prior_start=0.25", "method.ortho_start=0.25")
    return load_config(experiment, [*short, "network.wait=5", "network.timeout=60", *settings])


def nodes(config: ExperimentConfig, folder: Path) -> list[Node]:
    """Two nodes with six users each."""
    lines, made = preference_lines(), []
    for k in range(2):
        place = folder / f"node-{k}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "data.jsonl").write_text("\n".join(lines[60 * k : 60 * (k + 1)]) + "\n")
        made.append(_own(config, {"data.path": str(place / "data.jsonl"), "state-dir": str(place / "state")}))
    return made


def deployed(config: ExperimentConfig, folder: Path) -> tuple[Path, str]:
    """The run folder of a whole training, and what it printed on the way."""
    out, text = folder / "run", io.StringIO()
    console = Console(file=text, force_terminal=False, width=200)
    run = check_folder(out, config, "train", resume=(out / CONFIG).is_file())
    train_selector(config, run, console, FakeGrid(nodes(config, folder)))
    return out, text.getvalue()


def test_epsilon_is_in_the_progress_the_metrics_the_checkpoint_and_the_summary(
    experiment: Path, tmp_path: Path
) -> None:
    out, said = deployed(configured(experiment, *(f"privacy.{p}" for p in PRIVATE)), tmp_path)
    summary = json.loads((out / "deployment.json").read_text())
    epsilon = summary["epsilon"]
    assert 1 < epsilon < 1000
    assert summary["delta"] == pytest.approx(12**-1.1)
    assert f"epsilon {epsilon:.3g}" in said
    records = read_metrics(out / "metrics.jsonl")
    assert records[-1]["epsilon"] == epsilon
    assert {r["loss"] for r in records} == {None}
    found = checkpoint.load(out / "checkpoints")
    assert found is not None
    assert found[1]["epsilon"] == epsilon
    # Neither how much the users hold nor how well they are served is said.
    assert summary["pairs"] is None
    assert summary["clients_accuracy"] == {}
    assert Selector.from_pretrained(out).info.config.privacy.on


def test_without_privacy_there_is_no_word_of_it(experiment: Path, tmp_path: Path) -> None:
    out, said = deployed(configured(experiment), tmp_path)
    summary = json.loads((out / "deployment.json").read_text())
    assert "epsilon" not in summary
    assert summary["pairs"] > 12
    assert summary["clients_accuracy"]
    assert not re.search("epsilon", said)


def test_secret_noise_is_not_resumed(experiment: Path, tmp_path: Path) -> None:
    config = configured(experiment, *(f"privacy.{p}" for p in PRIVATE), "privacy.secret_noise=true")
    out, _ = deployed(config, tmp_path)
    (out / "deployment.json").unlink()
    with pytest.raises(UserError, match="cannot be drawn again"):
        deployed(config, tmp_path)
