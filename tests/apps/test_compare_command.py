"""`fedvpa compare`: cells, their resumption, failures, and the same rows in one process or several."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from test_train import untimed

from conftest import Cli
from fedvpa.apps import cells, comparing, executor
from fedvpa.apps.stopping import Interrupted
from fedvpa.config import load_config
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import read_metrics, read_results

METHODS = "fedvpa-gp,fedbt,local"


def test_rows_summary_and_files(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "c"
    options = ["--methods", METHODS, "--seeds", 2, "--jobs", 1, "--out", out, "--json", tmp_path / "t.json"]
    done = cli("compare", experiment, *options)
    assert done.code == 0, done.err
    assert "(6/6)" in done.err
    assert "Difference to fedvpa-gp" in done.out
    files = {"config.yaml", "fingerprint.json", "results.json", "metrics.jsonl", "report.html"}
    assert {p.name for p in out.iterdir()} == {*files, "cells"}
    results = read_results(out / "results.json")
    assert {(r["method"], r["seed"]) for r in results["rows"]} == {(m, s) for m in METHODS.split(",") for s in (0, 1)}
    assert [r for r in results["rows"] if r["method"] == "fedbt" and r["context_size"] is not None] == []
    assert all(e["seeds"] == 2 and e["pairs"] for e in results["summary"] if e["inference"] != "varies")
    assert {m["seed"] for m in read_metrics(out / "metrics.jsonl")} == {0, 1}
    assert [r["method"] for r in json.loads((tmp_path / "t.json").read_text())["main"]] == METHODS.split(",")

    written = {p: p.stat().st_mtime_ns for p in (out / "cells").iterdir()}
    done = cli("compare", experiment, *options, "--resume")
    assert done.code == 0
    assert "this run is finished" in done.err
    (out / "cells" / "local-seed1.safetensors").write_bytes(b"damaged")
    (out / "cells" / "fedbt-seed0.json").unlink()
    done = cli("compare", experiment, *options, "--resume")
    assert done.code == 0
    assert "4 of 6 cells are there already" in done.err
    again = {p.name for p in (out / "cells").iterdir() if p.stat().st_mtime_ns != written.get(p)}
    assert again == {f"{n}.{k}" for n in ("local-seed1", "fedbt-seed0") for k in ("json", "safetensors")}
    assert untimed(read_results(out / "results.json")) == untimed(results)


def test_an_interruption_keeps_finished_cells(
    experiment: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cells.run_cell

    def run(config: str, cell: cells.Cell, *rest: Any) -> Any:
        if cell.method == "fedvpl":
            signal.pthread_kill(main_thread, signal.SIGTERM)
        return original(config, cell, *rest)

    main_thread = threading.main_thread().ident
    monkeypatch.setattr(executor, "run_cell", run)
    options = ["--methods", "fedbt,fedvpl,local", "--jobs", 1, "--out", tmp_path / "c"]
    done = cli("compare", experiment, *options)
    assert done.code == 143
    assert "finished cells are kept" in done.err
    assert (tmp_path / "c/cells/fedbt-seed0.json").exists()
    assert not (tmp_path / "c/cells/local-seed0.json").exists()
    monkeypatch.undo()
    done = cli("compare", experiment, *options, "--resume")
    assert done.code == 0
    assert "of 3 cells are there already" in done.err


def test_a_failing_cell_is_reported_and_the_others_go_on(
    experiment: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cells.run_method

    def run(prepared: Any, name: str, **options: Any) -> Any:
        if name == "fedbt":
            raise ZeroDivisionError("a bug\nin two lines")
        return original(prepared, name, **options)

    monkeypatch.setattr(cells, "run_method", run)
    done = cli("compare", experiment, "--methods", "fedbt,local", "--jobs", 1, "--out", tmp_path / "c")
    assert done.code == 1
    assert "error: fedbt, seed 0: ZeroDivisionError: a bug" in done.err
    assert "raise ZeroDivisionError" in (tmp_path / "c/failures.log").read_text()
    assert {r["method"] for r in read_results(tmp_path / "c/results.json")["rows"]} == {"local"}
    assert (tmp_path / "c/report.html").exists()


def test_when_every_cell_fails_the_reason_is_the_error(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    rows = [json.loads(line) for line in (experiment.parent / "data.jsonl").read_text().splitlines()]
    path = tmp_path / "ungrouped.jsonl"
    path.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "group"}) + "\n" for r in rows))
    options = [f"data.path={path}", "--methods", "oracle", "--jobs", 1, "--out", tmp_path / "c"]
    done = cli("compare", experiment, *options)
    assert done.code == 2
    assert "error: method.name=oracle: this method needs true groups" in done.err
    assert not (tmp_path / "c/results.json").exists()


def test_a_cell_stops_when_asked(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = load_config(experiment).model_dump_json()
    monkeypatch.setattr(cells, "stop", threading.Event())
    cells.stop.set()
    with pytest.raises(Interrupted):
        cells.run_cell(text, cells.Cell("fedbt", 0), tmp_path / "cell.json")
    assert list(tmp_path.iterdir()) == []


def test_methods_are_parsed() -> None:
    assert comparing.parse_methods("fedbt, local,fedbt,") == ("fedbt", "local")
    with pytest.raises(UserError, match="did you mean oracle-clients"):
        comparing.parse_methods("oracle_clients")


@pytest.mark.slow
def test_several_processes_give_the_same_rows(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    for jobs in (1, 2):
        options = ["--methods", METHODS, "--jobs", jobs, "--out", tmp_path / f"{jobs}"]
        assert cli("compare", experiment, *options).code == 0
    one, two = (read_results(tmp_path / jobs / "results.json") for jobs in "12")
    assert untimed(one) == untimed(two)
