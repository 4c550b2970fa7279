"""`fedvpa compare` and `train` with methods that train the language model: rows like any other's, and no selector."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Cli

SMALL = [
    *("lora.rounds=2", "lora.local_steps=1", "lora.batch_pairs=2", "lora.rank=2", "lora.max_tokens=96"),
    *("federation.rounds=4", "federation.clients=4", "federation.sampled_clients=2", "output.checkpoint_every=1"),
]


def test_feddpo_enters_a_comparison_with_selectors(cli: Cli, experiment: Path, tmp_path: Path) -> None:
    options = ["--methods", "feddpo,fedbt,fedvpa-gp", "--jobs", 1, "--out", tmp_path / "run"]
    ended = cli("compare", experiment, *SMALL, "backbone.train=lora", *options)
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = {(r["method"], r["population"]): r for r in results["rows"] if r["default"]}
    for method in ("feddpo", "fedbt"):
        for population in ("seen", "unseen"):
            row = rows[method, population]
            assert (row["inference"], row["context_size"], row["switch_gap"]) == ("none", None, None)
            assert 0 <= row["accuracy"] <= 1
    # float32, A and B of rank 2, for two projections in each of four layers of width 32
    assert rows["feddpo", "unseen"]["bytes_up"] > 4 * 2 * 2 * 4 * 32
    rounds = {m: max(r["round"] for r in _metrics(tmp_path) if r["method"] == m) for m in ("feddpo", "fedvpa-gp")}
    assert rounds == {"feddpo": 2, "fedvpa-gp": 4}
    assert {s["method"] for s in results["summary"]} == {"feddpo", "fedbt", "fedvpa-gp"}
    assert "feddpo" in ended.out


def _metrics(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_of_feddpo_leaves_results_and_says_that_there_is_no_selector(
    cli: Cli, experiment: Path, tmp_path: Path
) -> None:
    ended = cli("train", experiment, *SMALL, "method.name=feddpo", "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "feddpo has no single selector to save" in ended.err
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert (tmp_path / "run" / "report.html").is_file()
    again = cli("train", experiment, *SMALL, "method.name=feddpo", "--out", tmp_path / "run", "--resume")
    assert again.code == 0
    assert "nothing to do" in again.err
