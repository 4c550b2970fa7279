"""What docs/index.md does first: the embedded language model reads answers, and a selector is trained on them."""

from __future__ import annotations

from pathlib import Path

from conftest import Cli
from fedvpa.evaluation.result_files import read_results

CONFIG = Path(__file__).parents[2] / "configs" / "jsonl.yaml"


def test_a_selector_is_trained_on_what_the_embedded_model_reads(cli: Cli, tmp_path: Path) -> None:
    assert cli("example-data", tmp_path, "--users", 12, "--pairs", 4).code == 0
    small = (f"data.path={tmp_path / 'pairs.jsonl'}", "federation.rounds=20", f"output.cache={tmp_path / 'cache'}")
    done = cli("train", CONFIG, *small, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "smollm2-135m-instruct" in (tmp_path / "run" / "model.json").read_text()
    rows = read_results(tmp_path / "run" / "results.json")["rows"]
    seen = [r["accuracy"] for r in rows if r["population"] == "seen" and r["default"]]
    assert seen
    assert all(accuracy > 0.5 for accuracy in seen)
    done = cli("personalize", tmp_path / "run", "--examples", tmp_path / "ada.jsonl", "--out", tmp_path / "ada.json")
    assert done.code == 0, done.err
    ask = ("score", tmp_path / "run", "--pairs", tmp_path / "candidates.jsonl")
    everybody, ada = cli(*ask).out, cli(*ask, "--user", tmp_path / "ada.json").out
    assert len(ada.splitlines()) == 12
    assert ada != everybody
