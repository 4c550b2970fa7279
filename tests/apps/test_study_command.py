"""`fedvpa study`: its files, cells that are never run twice, failures, interruption, and the quick reduction."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from conftest import Cli
from fedvpa.apps import cells
from fedvpa.backbone.forward import FrozenLM


def write_study(folder: Path, experiment: Path, **changes: Any) -> Path:
    tree: dict[str, Any] = {
        "name": "tiny",
        "title": "Tiny",
        "claim": "A latent helps.",
        "seeds": 2,
        "runs": [
            {"config": str(experiment), "methods": ["fedbt", "fedvpl"], "grid": {"federation.rounds": [2, 3]}},
        ],
        "tables": [
            {"title": "Unseen", "rows": ["method"], "columns": ["federation.rounds"]},
            {"title": "Many", "metric": ["accuracy", "kl"], "rows": ["method", "federation.rounds"]},
        ],
        "figures": [
            {"name": "rounds", "title": "By rounds", "x": "federation.rounds", "series": "method"},
            {"name": "dots", "title": "Dots", "kind": "dots", "x": "method", "facets": "federation.rounds"},
        ],
        "checks": [
            {
                "says": "a latent is ahead",
                "paper": True,
                "where": {"method": "fedvpl"},
                "minus": {"method": "fedbt"},
                "each": ["federation.rounds"],
                "at_least": 0,
            }
        ],
        "quick": {"seeds": 1, "grid": {"federation.rounds": [2]}},
        **changes,
    }
    path = folder / "tiny-study.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_files_and_numbers(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    study, out = write_study(tmp_path, experiment), tmp_path / "s" / "tiny"
    done = cli("study", study, "--plan", "--out", out)
    assert done.code == 0, done.err
    assert "8 cells (2 methods, 2 settings, 2 seeds); 8 to run" in done.out
    assert not out.exists()

    done = cli("study", study, "--out", out, "--jobs", 1, "--json", tmp_path / "t.json")
    assert done.code == 0, done.err
    assert "(8/8)" in done.err
    assert "left" in done.err
    expected = {"study.yaml", "results.parquet", "results.json", "summary.json", "rounds.svg", "dots.svg"}
    assert {p.name for p in out.iterdir()} == expected
    for figure in ("rounds", "dots"):
        assert ET.fromstring((out / f"{figure}.svg").read_text()).tag.endswith("svg")

    table = pq.read_table(out / "results.parquet").to_pylist()
    kept = json.loads((out / "results.json").read_text())
    assert len(table) == len(kept["rows"])
    assert {r["federation.rounds"] for r in table} == {2, 3}
    summary = json.loads((out / "summary.json").read_text())
    points = {(p["at"]["method"], p["at"]["federation.rounds"]): p for p in summary["tables"][0]["points"]}
    for (method, rounds), point in points.items():
        mine = [
            r["accuracy"]
            for r in table
            if (r["method"], r["federation.rounds"], r["population"]) == (method, rounds, "unseen")
            and r["default"]
            and r["context_size"] in (4, None)
        ]
        assert len(mine) == 2
        assert point["mean"] == pytest.approx(np.mean(mine), abs=1e-6)
    both = [points["fedvpl", n]["mean"] - points["fedbt", n]["mean"] for n in (2, 3)]
    assert [t["mean"] for t in summary["checks"][0]["tests"]] == pytest.approx(both, abs=2e-6)
    assert summary["provenance"]["seeds"] == [0, 1]
    assert summary["provenance"]["command"] == f"fedvpa study {study} --out DIR"
    assert summary["provenance"]["dates"]
    assert summary["cells"] == {"planned": 8, "finished": 8, "failed": []}
    assert {e["federation.rounds"] for e in kept["summary"]} == {2, 3}
    assert any(e["paired"] for e in kept["summary"])


def test_finished_cells_are_never_run_again(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    study = write_study(tmp_path, experiment)
    assert cli("study", study, "--out", tmp_path / "s" / "one", "--jobs", 1, "--seeds", 1).code == 0
    folder = tmp_path / "s" / "cells"
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert len(before) == 2 * 4
    # another study, one of whose settings is new; the cells are found in the folder that both share
    run = {"config": str(experiment), "methods": ["fedbt", "fedvpl"], "grid": {"federation.rounds": [3, 4]}}
    study = write_study(tmp_path, experiment, name="other", runs=[run], seeds=1)
    done = cli("study", study, "--out", tmp_path / "s" / "two", "--jobs", 1)
    assert done.code == 0
    assert "4 cells" in done.err
    assert "2 finished before" in done.err
    changed = json.loads((tmp_path / "s" / "one" / "summary.json").read_text())["provenance"]["command"]
    assert changed.endswith("--seeds 1 --out DIR")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert len(list(folder.iterdir())) == 2 * 6
    # a damaged one is run again, the others are not
    assert "nothing to run" in cli("study", study, "--out", tmp_path / "s" / "two", "--plan").out
    new = [p for p in folder.glob("*.safetensors") if p not in before]
    assert len(new) == 2
    new[0].write_bytes(b"damaged")
    assert "1 to run" in cli("study", study, "--out", tmp_path / "s" / "two", "--plan").out


def test_a_failing_cell_is_reported_and_the_others_go_on(
    experiment: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cells.run_method

    def run(prepared: Any, name: str, **options: Any) -> Any:
        if name == "fedbt" and prepared.config.federation.rounds == 2:
            raise ZeroDivisionError("a bug")
        return original(prepared, name, **options)

    monkeypatch.setattr(cells, "run_method", run)
    study, out = write_study(tmp_path, experiment, seeds=1), tmp_path / "s"
    done = cli("study", study, "--out", out, "--cells", tmp_path / "cells", "--jobs", 1)
    assert done.code == 1
    assert "rounds=2, fedbt, seed 0: ZeroDivisionError: a bug" in done.err
    assert "raise ZeroDivisionError" in (out / "failures.log").read_text()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["cells"] == {"planned": 4, "finished": 3, "failed": ["tiny, rounds=2, fedbt, seed 0"]}
    assert summary["checks"][0]["missing"] == 1
    monkeypatch.undo()
    done = cli("study", study, "--out", out, "--cells", tmp_path / "cells", "--jobs", 1)
    assert done.code == 0
    assert "3 finished before; 1 to run" in done.err
    assert not (out / "failures.log").exists()


def test_layers_and_poolings_come_from_one_pass_and_a_layer_too_deep_fails_alone(
    experiment: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[set[int]] = []
    load = FrozenLM.__init__

    def init(lm: FrozenLM, model: Any, dtype: Any, device: Any, layers: Any, max_tokens: int) -> None:
        loaded.append(set(layers))
        load(lm, model, dtype, device, layers, max_tokens)

    monkeypatch.setattr(FrozenLM, "__init__", init)
    run = {
        "config": str(experiment),
        "methods": ["fedbt"],
        "overrides": {"federation.rounds": 1, "output.cache": str(tmp_path / "cache")},
        "grid": {"backbone.layer": [9, 1, 0.5, 1.0], "backbone.pooling": ["mean", "last"]},
    }
    parts: dict[str, Any] = {"tables": [], "figures": [], "checks": [], "seeds": 1, "quick": {}}
    study, out = write_study(tmp_path, experiment, runs=[run], **parts), tmp_path / "s"
    done = cli("study", study, "--out", out, "--jobs", 1)
    assert done.code == 1
    assert "layer 9 of a model with 4" in done.err
    assert loaded == [{1, 2, 4}]
    made = json.loads((out / "summary.json").read_text())["cells"]
    assert (made["planned"], made["finished"], len(made["failed"])) == (8, 6, 2)
    assert all("layer=9" in label for label in made["failed"])
    assert len(list((tmp_path / "cache" / "features").glob("*.sqlite"))) == 6
    # a grid that grows runs the model only as deep as what it adds
    run["grid"] = {"backbone.layer": [1, 2, 3, 1.0], "backbone.pooling": ["mean", "last"]}
    study = write_study(tmp_path, experiment, runs=[run], **parts)
    assert cli("study", study, "--out", out, "--jobs", 1).code == 0
    assert loaded == [{1, 2, 4}, {3}]


def test_a_quick_study_is_smaller_and_never_overwrites_a_full_one(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    study = write_study(tmp_path, experiment)
    quick, full = tmp_path / "q", tmp_path / "f"
    assert cli("study", study, "--quick", "--out", quick, "--jobs", 1).code == 0
    summary = json.loads((quick / "summary.json").read_text())
    assert summary["quick"] is True
    assert summary["cells"]["planned"] == 2
    assert cli("study", study, "--out", full, "--jobs", 1, "--seeds", 1).code == 0
    before = (full / "summary.json").read_bytes()
    done = cli("study", study, "--quick", "--out", full)
    assert done.code == 2
    assert "holds the full study" in done.err
    assert (full / "summary.json").read_bytes() == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x")
    done = cli("study", study, "--out", tmp_path / "notes")
    assert done.code == 2
    assert "holds files but no study" in done.err


def test_an_open_selection_is_a_mistake_of_the_file(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    run = {"config": str(experiment), "methods": ["fedbt"], "grid": {"federation.rounds": [2, 3]}}
    parts: dict[str, Any] = {"tables": [{"title": "Open", "rows": ["method"]}], "checks": [], "seeds": 1}
    study = write_study(tmp_path, experiment, runs=[run], **parts)
    done = cli("study", study, "--out", tmp_path / "s", "--jobs", 1)
    assert done.code == 2
    assert "several rows of seed 0; they differ in federation.rounds" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_an_interruption_costs_only_the_cells_that_ran(
    signum: signal.Signals, experiment: Path, tmp_path: Path
) -> None:
    run = {"config": str(experiment), "methods": ["fedbt", "fedvpl"], "grid": {"federation.rounds": [2, 120]}}
    study = write_study(tmp_path, experiment, runs=[run])
    command = [
        sys.executable,
        "-m",
        "fedvpa.apps.cli",
        "study",
        str(study),
        "--out",
        str(tmp_path / "s"),
        "--jobs",
        "2",
    ]
    options: dict[str, Any] = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **options)
    folder, began = tmp_path / "cells", time.monotonic()
    while len(list(folder.glob("*.json"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < 120
        time.sleep(0.02)
    process.send_signal(signum)
    process.communicate(timeout=60)  # that it ends says that no worker is left behind: they hold the other end too
    assert process.returncode == (-signal.SIGKILL if signum == signal.SIGKILL else 130)
    assert not (tmp_path / "s" / "summary.json").exists()
    written = {p: p.stat().st_mtime_ns for p in folder.glob("[0-9a-f]*.json")}
    assert 2 <= len(written) < 8
    done = subprocess.run(command, check=False, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    assert f"{len(written)} finished before" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in written} == written
    assert len(list(folder.glob("[0-9a-f]*.json"))) == 8
