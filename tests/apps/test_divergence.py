"""A training that diverges stops with the round, the value and the remedy, and leaves no report."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Cli
from fedvpa.errors import UserError
from fedvpa.federation import rounds
from fedvpa.federation.divergence import Divergence
from toy import method_of, settings, world


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["federation.learning_rate=1e30"], "federation.learning_rate"),
        (["federation.learning_rate=1e4"], "federation.learning_rate"),
        (["federation.learning_rate=inf"], "federation.learning_rate"),
        (["federation.server_learning_rate=1e30"], "federation.server_learning_rate"),
        (["method.name=fedbt", "federation.learning_rate=1e30"], "federation.learning_rate"),
        (["method.name=central-vpl", "federation.server_learning_rate=1e30"], "federation.server_learning_rate"),
        (["method.name=fedvpa-laplace", "laplace.learning_rate=1e30", "laplace.rounds=6"], "laplace.learning_rate"),
    ],
)
def test_a_rate_far_too_high_is_one_line(
    experiment: Path, tmp_path: Path, cli: Cli, overrides: list[str], field: str
) -> None:
    done = cli("train", experiment, *overrides, "output.checkpoint_every=1", "--out", tmp_path / "r")
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert last.startswith(f"error: {field}: the training diverged in round ")
    assert f"lower {field}" in last
    assert not (tmp_path / "r" / "report.html").exists()
    assert not (tmp_path / "r" / "results.json").exists()
    assert not (tmp_path / "r" / "model.safetensors").exists()


def test_compare_names_the_cell_that_diverged(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    options = ["federation.learning_rate=1e30", "federation.rounds=3", "--jobs", "1", "--out", tmp_path / "c"]
    done = cli("compare", experiment, "--methods", "fedvpa-gp,local", *options)
    assert done.code == 1
    assert "fedvpa-gp, seed 0: " in done.err
    assert "the training diverged in round" in done.err


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf"), 1e7, 5e5])
def test_what_counts_as_diverged(loss: float) -> None:
    config = settings()
    state = rounds.start(method_of(world(config)), config, 2)
    watch = Divergence(config)
    for fine in (0.7, 100.0, -3.0):
        watch.check(state.server, {"loss": fine})
    watch.check(state.server, {})  # with privacy on nobody says a loss
    with pytest.raises(UserError, match=r"diverged in round 0: the loss is"):
        watch.check(state.server, {"loss": loss})
    Divergence(settings(faults__kinds=["nan"])).check(state.server, {"loss": loss})


def test_a_parameter_that_is_not_finite_stops_too() -> None:
    config = settings(federation__server_learning_rate=1e300, federation__server_optimizer="average")
    prepared = world(config)
    with pytest.raises(UserError, match=r"federation\.server_learning_rate: the training diverged in round \d: "):
        rounds.train(method_of(prepared), config, prepared.clients)
