"""A table in place of a configuration: `fedvpa train pairs.csv`."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from conftest import Cli, preference_lines
from fedvpa.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_table_trains_like_the_same_json_lines(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    rows = [json.loads(line) for line in preference_lines()]
    pd.DataFrame(rows).rename(columns={"user_id": "worker"}).to_csv(tmp_path / "pairs.csv", index=False)
    settings = [
        f"backbone.model={load_config(experiment).backbone.model}",
        "federation.rounds=2",
        "output.tensorboard=false",
    ]
    settings += [f"output.cache={tmp_path / 'cache'}", "evaluation.bootstrap=100", "federation.device=cpu"]
    done = cli("train", tmp_path / "pairs.csv", *settings, "--out", tmp_path / "r")
    assert done.code == 0, done.err
    line = f"{tmp_path / 'pairs.csv'}: choices, the preferred response first (user=worker, chosen=chosen, "
    assert done.err.startswith(line)
    data = json.loads((tmp_path / "r/results.json").read_text())["data"]
    assert data["rows"] == len(rows)
    assert data["users beyond federation.clients"] == 0
    saved = load_config(tmp_path / "r/config.yaml")
    assert (saved.data.name, saved.evaluation.queries) == ("table", "by-prompt")


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", ": the file is empty"),
        ("x.csv", b"user,chosn,rejected\nu,a,b\n", ":1: chosen: missing column; there are user, chosn, rejected"),
        ("x.parquet", b"PAR1cut", ": not a complete Parquet file"),
        ("x.csv.gz", b"\x1f\x8bcut", ": not a complete gzip file"),
        ("x.csv", None, ": no such file"),
        ("folder", None, ": no table in the folder"),
    ],
)
def test_a_bad_table_is_one_line(
    command: str, name: str, content: bytes | None, message: str, tmp_path: Path, cli: Cli
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name == "folder":
        path.mkdir()
    done = cli(command, path, "--out", tmp_path / "r")
    assert done.code == 2
    assert done.err.startswith(f"error: {path}{message}")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_everybody_takes_part_unless_told_otherwise(tmp_path: Path) -> None:
    for name in ("pairs.csv", "pairs.jsonl.zst", "pairs.parquet"):
        config = load_config(tmp_path / name, ["federation.clients=70", "data.columns.user=who"])
        assert (config.data.name, config.data.path) == ("table", str(tmp_path / name))
        assert (config.federation.clients, config.federation.unseen_clients) == (70, 100_000)
        assert config.data.columns.user == "who"
    assert load_config(tmp_path).data.path == str(tmp_path)


@pytest.mark.parametrize("name", ["polis", "jester", "arguments"])
def test_shipped_configurations_take_a_folder(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml", ["data.path=folder"])
    assert (config.data.name, config.data.path) == (name, "folder")
    assert config.evaluation.queries == "known-items"
    assert config.data.min_gap == (2 if name == "jester" else 0)


def test_what_names_no_method_is_trained_by_the_default_one_and_the_papers_experiments_name_theirs() -> None:
    assert load_config(CONFIGS / "jsonl.yaml").method.name == "fedvpa-laplace"
    papers = {*CONFIGS.glob("hh-*.yaml"), CONFIGS / "synthetic.yaml"}
    assert len(papers) == 6
    assert {load_config(path).method.name for path in papers} == {"fedvpa-gp"}
