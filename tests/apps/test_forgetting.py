"""`fedvpa forget`: nothing of the user is left in any file of the run, and the rest is as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from conftest import Cli
from fedvpa.apps.runs import read_config
from fedvpa.federation import checkpoint
from fedvpa.preferences.sources import load_preferences


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def states(run: Path) -> list[checkpoint.TrainingState]:
    found = [checkpoint._read(p) for p in checkpoint.checkpoints(run / "checkpoints")]
    assert not any(isinstance(f, str) for f in found)
    return [f[0] for f in found]  # type: ignore[misc]


def files(run: Path) -> list[Path]:
    return [p for p in run.rglob("*") if p.is_file()]


def test_the_posterior_is_gone_everywhere_and_the_others_stay(run: Path, cli: Cli) -> None:
    clients = load_preferences(read_config(run)).clients["seen"]
    before = states(run)
    known = (before[0].server.counts > 0).nonzero().flatten().tolist()
    at = known[0]
    user, row = clients[at].client_id, before[0].server.means[at].numpy().tobytes()
    assert len(before) > 1
    assert user in (run / "results.json").read_text()
    assert any(row in p.read_bytes() for p in files(run))

    ended = cli("forget", run, user)
    assert ended.code == 0
    assert "Not undone: the selector's parameters" in ended.out
    assert str(run / "results.json") in ended.out

    assert not any(row in p.read_bytes() for p in files(run))
    for figures in json.loads((run / "results.json").read_text())["diagnostics"].values():
        assert user not in figures["latents"]["ids"]
        assert len(figures["latents"]["means"]) == len(figures["latents"]["ids"])
        weights = figures["prior_weights"]
        assert user not in weights["ids"]
        assert all(len(w) == len(weights["ids"]) == len(weights["weights"]) for w in weights["weights"])
    rest = [i for i in range(len(clients)) if i != at]
    for old, new in zip(before, states(run), strict=True):
        assert int(new.server.counts[at]) == 0
        assert int(new.server.labels[at]) == -1
        assert torch.equal(new.server.means[rest], old.server.means[rest])
        assert not new.private["log_pi"][at].any()
        assert not new.private["log_pi"][:, at].any()
        assert torch.equal(new.private["log_pi"][rest][:, rest], old.private["log_pi"][rest][:, rest])
        assert all(torch.equal(v, old.server.theta[k]) for k, v in new.server.theta.items())
    assert cli("report", run).code == 0
    again = cli("forget", run, user)  # the client is still one of the data's: the same state once more
    assert again.code == 0


def test_a_damaged_checkpoint_may_hold_the_user_and_goes(run: Path, cli: Cli) -> None:
    newest = checkpoint.checkpoints(run / "checkpoints")[0]
    (newest / "state.json").write_text("{")
    user = load_preferences(read_config(run)).clients["seen"][0].client_id
    ended = cli("forget", run, user)
    assert f"{newest}: was damaged, deleted" in ended.out.replace("\n", "")
    assert not newest.exists()
    assert len(states(run)) == 1


def test_mistakes_are_one_line(run: Path, cli: Cli, tmp_path: Path) -> None:
    ended = cli("forget", run, "nobody")
    assert ended.code == 2
    assert ended.err == f"error: {run}: USER: nothing is kept about 'nobody'; check the user's id\n"
    assert cli("forget", tmp_path / "nowhere", "u1").code == 2


def test_a_comparison_forgets_in_its_cells_too(experiment: Path, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "both"
    assert cli("compare", experiment, "--methods", "fedvpa-gp,fedbt", "--out", run, "--jobs", 1).code == 0
    cells = sorted((run / "cells").glob("*.json"))
    user = load_preferences(read_config(run)).clients["seen"][0].client_id
    shown = {p for p in (*cells, run / "results.json") if f'"{user}"' in p.read_text()}
    assert len(shown) == 2  # fedbt has no posteriors to show
    assert cli("forget", run, user).code == 0
    assert not any(f'"{user}"' in p.read_text() for p in shown)
    resumed = cli("compare", experiment, "--methods", "fedvpa-gp,fedbt", "--out", run, "--resume")
    assert "nothing to do" in resumed.err


def test_a_compressed_prior_forgets_too(experiment: Path, cli: Cli, tmp_path: Path) -> None:
    """Columns of log pi are then components, not clients, and stay."""
    run, settings = tmp_path / "compressed", ("method.prior_components=3", "method.prior_start=0.25")
    assert cli("train", experiment, *settings, "--out", run).code == 0
    before = states(run)[0]
    at = int((before.server.counts > 0).nonzero()[-1])
    assert at >= 3
    assert int(before.server.extra["prior.member"][at]) >= 0
    assert cli("forget", run, load_preferences(read_config(run)).clients["seen"][at].client_id).code == 0
    after = states(run)[0]
    assert int(after.server.extra["prior.member"][at]) == -1
    assert int(after.server.extra["prior.counts"].sum()) == int(after.server.counts.sum())
    rest = [i for i in range(8) if i != at]
    assert not after.private["log_pi"][at].any()
    assert torch.equal(after.private["log_pi"][rest], before.private["log_pi"][rest])
