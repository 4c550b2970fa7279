"""A deployment's run folder, over a grid in this process: what it says with privacy on, what is not resumed, and how a
user is forgotten."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from conftest import Cli, preference_lines
from fake_grid import FakeGrid
from fedvpa.apps.deployed import train_selector
from fedvpa.apps.flower_client import _own
from fedvpa.apps.runs import CONFIG, check_folder
from fedvpa.config import ExperimentConfig, load_config
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import read_metrics
from fedvpa.federation import checkpoint
from fedvpa.methods.components import Components, without_own
from fedvpa.network.node import Node
from fedvpa.preferences.users import pseudonym
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


def states(run: Path) -> list[checkpoint.TrainingState]:
    found = [checkpoint._read(p) for p in checkpoint.checkpoints(run / "checkpoints")]
    return [f[0] for f in found if not isinstance(f, str)]


@pytest.mark.parametrize("components", [0, 3, 11])
def test_forget_removes_a_user_from_everything_that_the_server_keeps(
    components: int, experiment: Path, cli: Cli, tmp_path: Path
) -> None:
    """With 11 components for 12 users most posteriors are a component of their own: there they have to go as well."""
    out, _ = deployed(configured(experiment, f"method.prior_components={components}"), tmp_path)
    before = states(out)
    session = json.loads((out / "network/session.json").read_text())
    rows = [next((j for j in range(12) if s.server.counts[j]), -1) for s in before]
    at = rows[0]
    user = next(f"u{u}" for u in range(12) if pseudonym(f"u{u}") == session["users"][at])
    posteriors = {s.server.means[at].numpy().tobytes() for s in before if s.server.counts[at]}
    (out / "network/faults.jsonl").write_text(
        json.dumps({"round": 1, "kind": "rejected", "node": 1, "users": [pseudonym(user)], "reason": ""}) + "\n"
    )
    files = lambda: [p.read_bytes() for p in out.rglob("*") if p.is_file()]  # noqa: E731
    assert posteriors
    assert all(any(row in data for data in files()) for row in posteriors)

    ended = cli("forget", out, user)
    assert ended.code == 0, ended.err
    assert "no further part in this training" in ended.out
    assert not any(row in data for data in files() for row in posteriors)
    assert not any(pseudonym(user).encode() in data for data in files())
    for old, new in zip(before, states(out), strict=True):
        rest = [i for i in range(12) if i != at]
        assert int(new.server.counts[at]) == 0
        assert torch.equal(new.server.means[rest], old.server.means[rest])
        if components:
            left, was = Components.of(new.server.extra), Components.of(old.server.extra)
            assert int(left.member[at]) == -1
            assert int(left.counts.sum()) == int(new.server.counts.sum())
            mine = int(was.member[at])
            own = without_own(old.server.means, old.server.variances, old.server.counts, was)
            torch.testing.assert_close(left.means[mine], own.means[at], atol=1e-5, rtol=1e-4)
            others = [k for k in range(components) if k != mine and was.counts[k]]
            torch.testing.assert_close(left.means[others], was.means[others])
    assert cli("forget", out, user).code == 2  # nobody knows that name any more


def test_a_forgotten_user_takes_no_further_part(experiment: Path, cli: Cli, tmp_path: Path) -> None:
    config = configured(experiment, "method.prior_components=3")
    out, _ = deployed(config, tmp_path)
    (out / "deployment.json").unlink()
    shutil.rmtree(checkpoint.checkpoints(out / "checkpoints")[0])  # as if the server had been killed after round 4
    at = int((states(out)[0].server.counts > 0).nonzero()[0])
    name = json.loads((out / "network/session.json").read_text())["users"][at]
    assert cli("forget", out, name).code == 0  # who runs the server may know the pseudonym only
    deployed(config, tmp_path)
    last = states(out)[0].server
    assert last.round == 6
    assert int(last.counts[at]) == 0
    assert int(Components.of(last.extra).member[at]) == -1
    summary = json.loads((out / "deployment.json").read_text())
    assert summary["faults"] == {"late": 1}
    assert name not in (out / "network/session.json").read_text()


def test_forget_at_a_node(experiment: Path, cli: Cli, tmp_path: Path) -> None:
    deployed(configured(experiment), tmp_path)
    state = tmp_path / "node-0/state"
    user = next(u for u in (f"u{k}" for k in range(6)) if (state / pseudonym(u)).is_dir())
    others = {p.name for p in state.iterdir()} - {pseudonym(user)}
    ended = cli("forget", state, user)
    assert ended.code == 0
    assert "the user's pairs in this SuperNode's data" in ended.out
    assert {p.name for p in state.iterdir()} == others
    assert cli("forget", state, user).code == 2
    assert cli("forget", state, "../state").code == 2
    assert state.is_dir()


def votes(users: range) -> list[str]:
    """Each votes on 24 of 40 items, and likes even or odd ones."""
    return [f"u{u},i{(11 * u + k) % 40},{1 if (11 * u + k + u) % 2 else -1}" for u in users for k in range(24)]


def ratings(users: range) -> list[str]:
    """The same of ratings; the people of the second node rate 20 higher, and more widely."""
    lines = (line.split(",") for line in votes(users))
    return [
        f"{u},{i},{(50 + 20 * (int(u[1:]) // 6)) + (2 + int(u[1:]) // 6) * int(v) + int(i[1:]) % 3}"
        for u, i, v in lines
    ]


def write_votes(folder: Path, lines: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "votes.csv").write_text("\n".join(["user,item,rating", *lines]) + "\n")
    items = (f"i{k},Which one?,{'A long and careful' if k % 2 else 'No'} {k}" for k in range(40))
    (folder / "items.csv").write_text("\n".join(["item,prompt,text", *items]) + "\n")
    return folder


LAPLACE = ("method.name=fedvpa-laplace", "laplace.rounds=6", "laplace.components=2", "federation.dtype=float64")


@pytest.mark.parametrize("given_by", [votes, ratings])
def test_votes_at_the_nodes_train_like_all_votes_in_one_place(
    given_by: Callable[[range], list[str]], experiment: Path, cli: Cli, tmp_path: Path
) -> None:
    """Every person has the role, the judgements and the queries that it has where all tables are one."""
    config = configured(experiment, *LAPLACE).for_method("fedvpa-laplace")
    made = []
    for k in range(2):
        place = write_votes(tmp_path / f"node-{k}", given_by(range(6 * k, 6 * k + 6)))
        given = {"data.name": "table", "data.path": str(place), "state-dir": str(tmp_path / f"state-{k}")}
        made.append(_own(config, given))
    assert [len(node.clients) for node in made] == [6, 6]
    out = tmp_path / "run"
    console = Console(file=io.StringIO(), force_terminal=False)
    train_selector(config, check_folder(out, config, "train", resume=False), console, FakeGrid(made))
    everything = write_votes(tmp_path / "all", given_by(range(12)))
    sizes = ("federation.clients=12", "federation.unseen_clients=0", "federation.validation_clients=0")
    ended = cli(
        "train", experiment, "data.name=table", f"data.path={everything}", *LAPLACE, *sizes, "--out", tmp_path / "v"
    )
    assert ended.code == 0, ended.err
    one, two = states(out)[0].server, states(tmp_path / "v")[0].server
    assert one.round == two.round == 6
    assert len(one.shares) == 2
    assert one.extra.keys() == two.extra.keys()
    for name, value in {**two.theta, **two.extra, "centroids": two.centroids, "spread": two.spread}.items():
        found = {**one.theta, **one.extra, "centroids": one.centroids, "spread": one.spread}[name]
        torch.testing.assert_close(found, value, atol=1e-9, rtol=0, msg=name)
    summary = json.loads((out / "deployment.json").read_text())
    assert (summary["users"], summary["pairs"]) == (12, int(sum(min(20, 2 * 10) for _ in range(12))))
    assert set(summary["clients_accuracy"]) == {"mixture", "gaussian"}
    scales = [Selector.from_pretrained(run).info.rating_scale for run in (out, tmp_path / "v")]
    assert scales[0] == scales[1]
    assert (scales[0] != (0.0, 1.0)) == (given_by is ratings)


def test_a_node_names_a_source_of_real_people(experiment: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'synthetic' is not a source of people's own data"):
        _own(configured(experiment), {"data.name": "synthetic", "data.path": "x", "state-dir": str(tmp_path)})
