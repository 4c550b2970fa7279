"""`fedvpa.train`: the result of the command, from a file or from rows, with no folder unless one is asked for."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import fedvpa
from conftest import Cli
from fedvpa import Selector, UserError
from test_selector_api import PROMPT, A, B

ROW = {"prompt": "Question 3 of many?", "chosen": "Answer 3, at some length and with care.", "rejected": "No 3."}


@pytest.fixture(scope="module")
def rows(experiment: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (experiment.parent / "data.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def settings(experiment: Path) -> dict[str, Any]:
    """What makes a training on any table as small as the fixture's."""
    tree = yaml.safe_load(experiment.read_text())
    sizes = {"clients": 8, "unseen_clients": 2, "validation_clients": 2, "sampled_clients": 8, "context_pairs": 4}
    laplace = {"rounds": 12, "components": 2, "learning_rate": 0.002}
    model = {"latent_dim": 4, "hidden_dim": 12, "encoder_dim": 8}
    rest = {"backbone": tree["backbone"], "output": tree["output"], "evaluation": {"bootstrap": 100}}
    return {"laplace": laplace, "model": model, "federation": {**sizes, "device": "cpu"}, **rest}


def figures(run: fedvpa.Run) -> list[dict[str, Any]]:
    """The rows without what the clock decides."""
    rows = run.results.drop(columns="seconds_per_round").astype(object).to_dict("records")
    return [{str(k): None if v != v else v for k, v in row.items()} for row in rows]


def test_it_is_the_commands_result(experiment: Path, finished: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    run = fedvpa.train(experiment, progress=False)
    assert isinstance(run.results, pd.DataFrame)
    written = json.loads((finished / "results.json").read_text())["rows"]
    for own, theirs in zip(figures(run), written, strict=True):
        assert own == {k: v for k, v in theirs.items() if k in own}
    theirs = Selector.from_pretrained(finished)
    assert run.selector.info.model_hash == theirs.info.model_hash
    assert run.selector.prefer(PROMPT, A, B) == pytest.approx(theirs.prefer(PROMPT, A, B), abs=1e-6)
    assert run.path is None
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == before


def test_rows_are_the_file_that_holds_them(
    rows: list[dict[str, Any]], settings: dict[str, Any], experiment: Path, tmp_path: Path
) -> None:
    one = fedvpa.train(experiment.parent / "data.jsonl", progress=False, **settings)
    frame = fedvpa.train(pd.DataFrame(rows), progress=False, out=tmp_path / "run", **settings)
    assert one.config.method.name == frame.config.method.name == "fedvpa-laplace"
    assert figures(one) == figures(frame)
    assert one.selector.info.model_hash == frame.selector.info.model_hash
    assert frame.config.data.path is None
    assert not list((tmp_path / "run").glob("data*"))
    ada = frame.selector.infer_user(ROW)
    assert ada.update([ROW]).pairs == 2
    again = fedvpa.train(pd.DataFrame(rows), progress=False, out=tmp_path / "run", resume=True, **settings)
    assert figures(again) == figures(frame)


def test_a_report_and_a_folder_for_the_commands(experiment: Path, tmp_path: Path, cli: Cli, capsys: Any) -> None:
    run = fedvpa.train(experiment, out=tmp_path / "r", progress=False, federation__rounds=2, seed=3)
    assert run.config.federation.rounds == 2
    assert len(run.metrics) == 2
    assert set(run.results["seed"]) == {3}
    capsys.readouterr()
    assert run.report() == tmp_path / "r" / "report.html"
    assert "fedvpa-gp" in capsys.readouterr().out
    page = run.report(tmp_path / "page.html")
    assert page == tmp_path / "page.html"
    assert page.read_text() == (tmp_path / "r" / "report.html").read_text()
    assert cli("evaluate", tmp_path / "r").code == 0
    assert len(repr(run)) < 200


def test_a_method_without_a_selector_says_so(experiment: Path) -> None:
    run = fedvpa.train(experiment, method="local", progress=False)
    assert len(run.results)
    with pytest.raises(UserError, match="local leaves no single selector"):
        _ = run.selector


def test_what_was_read_is_logged_and_nothing_printed(
    rows: list[dict[str, Any]], settings: dict[str, Any], caplog: Any, capsys: Any
) -> None:
    with caplog.at_level(logging.INFO, logger="fedvpa"):
        fedvpa.train(rows, progress=False, **settings)
    assert any("choices, the preferred response first" in r.message for r in caplog.records)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("nowhere.csv", {}, "nowhere.csv: no such file"),
        ("sinthetic", {}, "did you mean synthetic"),
        (None, {}, "data: must be a list"),
        (3, {}, "data: must be a list"),
        ([], {}, "data: the file is empty"),
        ([1], {}, "data:1: must be an object"),
        ([{"prompt": "x", "chosen": "a", "rejected": "b"}], {}, "user_id: missing column"),
        ([{**ROW, "user_id": "u", "rejected": " "}], {}, "data:1: rejected: is empty"),
        ("synthetic", {"rounds": 3}, "rounds: unknown key"),
        ("synthetic", {"federation": {"round": 3}}, "federation.round: unknown key; did you mean federation.rounds"),
        ("synthetic", {"method": "fedvpa_gp"}, "method.name: unknown value"),
        ("synthetic", {"overwrite": True, "resume": True}, "exclude each other"),
    ],
)
def test_what_is_wrong_is_one_line(data: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as e:
        fedvpa.train(data, out=tmp_path / "r", progress=False, **options)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "r").exists()
