"""From a study file to cells: the expansion, and what a cell is known by."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedvpa.apps.cells import Cell, data_part
from fedvpa.apps.study_grid import StudyCell, expand
from fedvpa.config import ExperimentConfig, parse_config
from fedvpa.errors import UserError
from fedvpa.evaluation.compare import PairScores
from fedvpa.evaluation.results import METRICS
from fedvpa.evaluation.study_schema import Study, load_study
from fedvpa.evaluation.study_summary import summarise_study
from fedvpa.evaluation.tidy import Record, records

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml"))


def cells_of(tmp_path: Path, runs: list[dict[str, Any]], **options: Any) -> list[StudyCell]:
    (tmp_path / "base.yaml").write_text("federation: {clients: 12, sampled_clients: 4}\n")
    runs = [{"config": "base.yaml", "methods": ["fedbt", "fedvpl"], **run} for run in runs]
    study = Study.model_validate({"name": "s", "title": "S", "claim": "C.", "seeds": 2, "runs": runs})
    return expand(study, tmp_path / "study.yaml", **options)


def test_methods_times_settings_times_seeds(tmp_path: Path) -> None:
    grid = {"method.beta": [0.1, 0.01], "data.group_shares": [[0.5, 0.5], [0.9, 0.1]]}
    variants = {"default": {}, "wide": {"model.hidden_dim": 512}}
    found = cells_of(tmp_path, [{"grid": grid, "variants": variants}])
    assert len(found) == len({c.address for c in found}) == 2 * 2 * 2 * 2 * 2
    assert {c.settings["data.group_shares"] for c in found} == {"0.5/0.5", "0.9/0.1"}
    assert {(c.settings["variant"], c.settings["model.hidden_dim"]) for c in found} == {("default", 256), ("wide", 512)}
    one = found[0]
    assert one.config.method.beta == one.settings["method.beta"]
    assert str(one) == "base, beta=0.1, group_shares=0.5/0.5, hidden_dim=256, fedbt, seed 0"


def test_keys_that_do_not_vary_are_no_settings_and_seeds_can_be_given(tmp_path: Path) -> None:
    found = cells_of(tmp_path, [{"overrides": {"method.beta": 0.5}, "seeds": 1}], overrides=["federation.rounds=7"])
    assert [dict(c.settings) for c in found] == [{"benchmark": "base", "variant": "default"}] * 2
    assert {c.config.federation.rounds for c in found} == {7}
    assert len(cells_of(tmp_path, [{"seeds": 1}], seeds=3)) == 6


def test_a_cell_that_two_runs_share_is_there_once(tmp_path: Path) -> None:
    assert len(cells_of(tmp_path, [{}, {"methods": ["fedbt", "local"]}])) == 3 * 2


def test_settings_of_a_method_lie_under_the_runs_own(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("federation: {clients: 12, sampled_clients: 4}\n")
    (tmp_path / "tuned.yaml").write_text("fedvpl: {method.beta: 0.2, federation.local_steps: 8}\nfedbt: {}\n")
    run = {"config": "base.yaml", "methods": ["fedbt", "fedvpl"], "grid": {"method.beta": [0.3, 0.4]}}
    tree = {"name": "s", "title": "S", "claim": "C.", "seeds": 1, "settings": "tuned.yaml", "runs": [run]}
    found = expand(Study.model_validate(tree), tmp_path / "study.yaml")
    steps = {(c.cell.method, c.config.method.beta, c.config.federation.local_steps) for c in found}
    assert steps == {("fedbt", 0.3, 2), ("fedbt", 0.4, 2), ("fedvpl", 0.3, 8), ("fedvpl", 0.4, 8)}
    assert all("federation.local_steps" not in c.settings for c in found)


def test_a_run_can_leave_the_settings_of_its_methods_out(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("federation: {clients: 12, sampled_clients: 4}\n")
    (tmp_path / "tuned.yaml").write_text("fedvpl: {method.beta: 0.2}\n")
    searched = {"config": "base.yaml", "methods": ["fedvpl"]}
    shared = {**searched, "tuned": False, "variants": {"default settings": {}}}
    tree = {"name": "s", "title": "S", "claim": "C.", "seeds": 1, "settings": "tuned.yaml", "runs": [searched, shared]}
    one, two = expand(Study.model_validate(tree), tmp_path / "study.yaml")
    assert (one.settings["variant"], one.config.method.beta) == ("default", 0.2)
    assert (two.settings["variant"], two.config.method.beta) == ("default settings", ExperimentConfig().method.beta)


@pytest.mark.parametrize(
    ("text", "says"), [("[1]", "not a mapping"), ("fedvlp: {}", "did you mean fedvpl"), (None, "nowhere.yaml")]
)
def test_settings_that_cannot_be_read_are_refused(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "tuned.yaml").write_text(text)
    run = {"config": "base.yaml", "methods": ["fedbt"]}
    settings = "nowhere.yaml" if text is None else "tuned.yaml"
    tree = {"name": "s", "title": "S", "claim": "C.", "seeds": 1, "settings": settings, "runs": [run]}
    with pytest.raises(UserError, match=says):
        expand(Study.model_validate(tree), tmp_path / "study.yaml")


def test_cells_that_share_their_data_follow_each_other(tmp_path: Path) -> None:
    found = cells_of(tmp_path, [{"grid": {"data.pairs_per_client": [4, 8], "method.beta": [0.1, 1.0]}}])
    parts = [data_part(c.cell.config(c.config)) for c in found]
    assert len(set(parts)) == 4
    assert sum(a != b for a, b in itertools.pairwise(parts)) == 3


def test_two_settings_that_look_the_same_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("federation: {clients: 99}\n")
    runs = [{"label": "x"}, {"label": "x", "config": "other.yaml"}]
    with pytest.raises(UserError, match="two settings look the same"):
        cells_of(tmp_path, runs)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"methods": ["fedvlp"]}, "did you mean fedvpl"),
        ({"grid": {"method.betta": [1]}}, "did you mean method.beta"),
        ({"config": "nowhere.yaml"}, "no such configuration"),
    ],
)
def test_mistakes_name_what_is_wrong(tmp_path: Path, run: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cells_of(tmp_path, [run])


def test_the_address_is_the_contents(tmp_path: Path) -> None:
    tree = {"method": {"beta": 0.1, "tau": 2.0}, "federation": {"rounds": 7}}
    turned = {"federation": {"rounds": 7}, "method": {"tau": 2.0, "beta": 0.1, "name": "local"}, "seed": 5}
    cell = Cell("fedvpl", 3)
    address = cell.address(parse_config(tree))
    assert cell.address(parse_config(turned)) == address  # neither the order of keys, nor another method and seed
    elsewhere = {**tree, "output": {"cache": "x"}, "evaluation": {"bootstrap": 500, "every": 3}}
    assert cell.address(parse_config(elsewhere)) == address
    others = [
        Cell("fedvpl", 4).address(parse_config(tree)),
        Cell("fedbt", 3).address(parse_config(tree)),
        cell.address(parse_config({**tree, "federation": {"rounds": 8}})),
        cell.address(parse_config({**tree, "evaluation": {"protocol": "pair-leak"}})),
        cell.address(parse_config({**tree, "data": {"label_noise": 0.1}})),
    ]
    assert len({address, *others}) == 6
    assert len(address) == 20


def test_an_infinite_value_reaches_the_worker(tmp_path: Path) -> None:
    (one,) = cells_of(
        tmp_path, [{"methods": ["fedvpl"], "overrides": {"method.beta_warmup": float("inf")}, "seeds": 1}]
    )
    sent = parse_config(json.loads(one.config.model_dump_json()))
    assert sent.method.beta_warmup == float("inf")
    assert one.cell.address(sent) == one.address


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_the_shipped_studies_expand(path: Path) -> None:
    study = load_study(path)
    full, quick = expand(study, path), expand(study.reduced(), path)
    assert 0 < len(quick) <= len(full)
    assert all(c.config.federation.rounds <= 60 for c in quick)
    assert all(c.config.federation.unseen_clients <= 24 for c in quick)


def test_eleven_studies_are_shipped_under_as_many_names() -> None:
    names = [yaml.safe_load(p.read_text())["name"] for p in SHIPPED]
    assert len(set(names)) == len(names) == 11


def made_up(cell: StudyCell) -> list[Record]:
    """Rows as a cell leaves them, without training it."""
    method, leaking = cell.cell.method, cell.config.evaluation.protocol == "pair-leak"
    plain = ("fedbt", "fedbiscuit", "fedpdpo", "pluralllm", "votes-mean", "local", "oracle", "oracle-clients")
    latent = method not in plain
    sizes = (
        (None,)
        if leaking or not (latent or method in ("local", "fedpdpo", "pluralllm"))
        else cell.config.evaluation.context_sizes
    )
    rows = [
        {"method": method, "seed": cell.cell.seed, "population": population, "inference": how}
        | {"default": how in ("mixture", "none"), "context_size": size, "accuracy": 0.75}
        | {m: 0.5 if latent else None for m in METRICS}
        | {"group_accuracy": {g: 0.7 for g in cell.config.data.groups or ("a", "b")}}
        for population in ("seen", "unseen")
        for size in sizes
        for how in (("amortised", "mixture") if latent else ("none",))
    ]
    scores = [PairScores(np.full(4, 0.25), np.array([0.25, 0.25, 0.25, 0.0])) for _ in rows]
    return records(cell.settings, rows, scores, "pool", cell.config.federation.context_pairs)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_what_the_shipped_studies_show_is_determined(path: Path) -> None:
    """Every table, figure and check picks one row per seed, and finds both sides of every difference."""
    study = load_study(path)
    shown = summarise_study(study, [r for c in expand(study, path, seeds=2) for r in made_up(c)], 100)
    for item in (*shown["tables"], *shown["figures"]):
        assert item["points"], item["title"]
    for check in shown["checks"]:
        assert check["tests"], check["says"]
        assert check["missing"] == 0, check["says"]
