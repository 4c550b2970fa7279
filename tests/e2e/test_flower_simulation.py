"""`flwr run .` in the repository: Flower's simulation writes what `fedvpa train` writes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_deployment import free_ports

from fedvpa.apps.cli import main
from fedvpa.evaluation.result_files import read_results
from fedvpa.federation import checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
AT_CLIENTS = ("effective_components", "same_group_weight")


def end(home: Path) -> None:
    """Everything that runs with this Flower folder."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME") == str(home):
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue


NOISE = ("clip=0.5", "noise=0.5", "posterior_clip=2", "posterior_noise=0.5", "moments_clip=50", "moments_noise=3")


@pytest.mark.parametrize("private", [(), tuple(f"privacy.{n}" for n in NOISE)], ids=["plain", "private"])
def test_the_simulation_gives_the_same_model_and_table(
    private: tuple[str, ...], experiment: Path, tmp_path: Path
) -> None:
    settings = ("federation.rounds=4", "federation.dtype=float64", "output.tensorboard=false", *private)
    assert main(["train", str(experiment), *settings, "--out", str(tmp_path / "vectorised")]) == 0
    home, run, ports = tmp_path / "flwr", tmp_path / "run", free_ports(2)
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(ports[0]),
        "FLWR_LOCAL_CONTROL_API_PORT": str(ports[1]),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    overrides = f'experiment="{experiment}" out="{run}" settings="{" ".join(settings)}"'
    nodes = "num-supernodes=4 client-resources-num-cpus=1"
    command = ["flwr", "run", str(ROOT), "--run-config", overrides, "--federation-config", nodes]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        deadline = time.monotonic() + 300
        while not (run / "report.html").exists():
            assert time.monotonic() < deadline, (home / "local-superlink/superlink.log").read_text()[-4000:]
            time.sleep(0.5)
    finally:
        end(home)
    one, two = (checkpoint.load(folder / "checkpoints") for folder in (run, tmp_path / "vectorised"))
    assert one is not None
    assert two is not None
    for name, value in two[0].server.theta.items():
        assert float((one[0].server.theta[name] - value).abs().max()) < 1e-9, name
    found, expected = (read_results(folder / "results.json")["rows"] for folder in (run, tmp_path / "vectorised"))
    assert len(found) == len(expected) > 0
    assert all((row["epsilon"] is not None) == bool(private) for row in found)
    for row, other in zip(found, expected, strict=True):
        assert all(row[k] is None for k in AT_CLIENTS)
        for key in set(row) - {*AT_CLIENTS, "seconds_per_round"}:
            assert row[key] == (pytest.approx(other[key]) if isinstance(other[key], (float, dict)) else other[key]), key
