"""`flwr run .` in the repository: Flower's simulation writes what `fedvpa train` writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvpa.apps.cli import main
from fedvpa.evaluation.result_files import read_results
from fedvpa.federation import checkpoint
from simulation import simulate

AT_CLIENTS = ("effective_components", "same_group_weight")
NOISE = ("clip=0.5", "noise=0.5", "posterior_clip=2", "posterior_noise=0.5", "moments_clip=50", "moments_noise=3")
PRIVATE = tuple(f"privacy.{n}" for n in NOISE)
LAPLACE = ("method.name=fedvpa-laplace", "laplace.rounds=4", "laplace.prior_start=0.25", "laplace.components=2")


@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="plain"),
        pytest.param(PRIVATE, id="private", marks=pytest.mark.slow),
        pytest.param(LAPLACE, id="laplace", marks=pytest.mark.slow),
    ],
)
def test_the_simulation_gives_the_same_model_and_table(more: tuple[str, ...], experiment: Path, tmp_path: Path) -> None:
    private = more is PRIVATE
    settings = ("federation.rounds=4", "federation.dtype=float64", "output.tensorboard=false", *more)
    assert main(["train", str(experiment), *settings, "--out", str(tmp_path / "vectorised")]) == 0
    run = tmp_path / "run"
    simulate(experiment, settings, 4, run, tmp_path / "flwr", patience=300)
    one, two = (checkpoint.load(folder / "checkpoints") for folder in (run, tmp_path / "vectorised"))
    assert one is not None
    assert two is not None
    for name, value in two[0].server.theta.items():
        assert float((one[0].server.theta[name] - value).abs().max()) < 1e-9, name
    found, expected = (read_results(folder / "results.json")["rows"] for folder in (run, tmp_path / "vectorised"))
    assert len(found) == len(expected) > 0
    assert all((row["epsilon"] is not None) == private for row in found)
    for row, other in zip(found, expected, strict=True):
        assert all(row[k] is None for k in AT_CLIENTS)
        for key in set(row) - {*AT_CLIENTS, "seconds_per_round"}:
            assert row[key] == (pytest.approx(other[key]) if isinstance(other[key], (float, dict)) else other[key]), key
