"""Real processes: killed, terminated, on a full disk, and as a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedvpa.evaluation.result_files import read_metrics, read_results
from fedvpa.federation import checkpoint

LONG = ("federation.rounds=60", "output.tensorboard=false")


def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedvpa.apps.cli", *(str(a) for a in arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a checkpoint is there."""
    for _ in range(1200):
        if checkpoint.checkpoints(path):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    pytest.fail("no checkpoint within a minute")


def results(run: Path) -> list[dict[str, Any]]:
    rows = read_results(run / "results.json")["rows"]
    return [{k: v for k, v in row.items() if k != "seconds_per_round"} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "r"
    process = start("train", experiment, *LONG, "--out", out)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_resume_is_bit_identical_after(
    signum: signal.Signals, experiment: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    process = start("train", experiment, *LONG, "--out", out)
    wait_for(out / "checkpoints", process)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    if signum == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + signum
        assert err.splitlines()[-1] == f"interrupted; go on with `--out {out} --resume`"
    assert not (out / "results.json").exists()
    process = start("train", experiment, *LONG, "--out", out, "--resume")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "resuming after round" in err
    assert (out / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert results(out) == results(undisturbed)
    assert [r["round"] for r in read_metrics(out / "metrics.jsonl")] == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "28k", "100k"])
def test_a_full_disk(size: str, experiment: Path, tmp_path: Path) -> None:
    """A file system that is too small for the configuration, a checkpoint, the results."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        process = start("train", experiment, "--out", disk / "r")
        _, err = process.communicate(timeout=120)
    finally:
        subprocess.run(["umount", str(disk)], check=False)
    assert process.returncode == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "No space left" in last or "disk is full" in last
    assert "Traceback" not in err


def test_a_reader_that_goes_away(experiment: Path) -> None:
    process = start("config", "--keys")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(timeout=60) in (0, 1)
    assert "Traceback" not in err


def test_the_installed_command() -> None:
    command = Path(sys.executable).with_name("fedvpa")
    done = subprocess.run([str(command), "train", "nowhere.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: nowhere.yaml: no such configuration; see the files in configs/\n"
