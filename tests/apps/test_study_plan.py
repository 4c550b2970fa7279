"""The estimate of a study."""

from __future__ import annotations

import pytest

from fedvpa.apps.executor import duration
from fedvpa.apps.study_grid import StudyCell
from fedvpa.apps.study_plan import Estimator, describe, guess
from fedvpa.config import parse_config


def cell(method: str, seed: int = 0, **federation: int) -> StudyCell:
    from fedvpa.apps.cells import Cell

    config, own = parse_config({"federation": federation}), Cell(method, seed)
    return StudyCell(own, config, {"benchmark": "b", "variant": "default"}, own.address(config))


def finished(method: str, seconds: float, **federation: int) -> tuple[dict, float]:
    one = cell(method, **federation)
    return one.cell.config(one.config).model_dump(mode="json"), seconds


def test_without_experience_it_is_a_guess_that_grows_with_the_rounds() -> None:
    few, many = (Estimator([]).seconds(cell("fedvpl", rounds=r)) for r in (10, 300))
    assert many == guess("fedvpl", parse_config({}).model_dump(mode="json"))
    assert many - few == pytest.approx(290 * 0.04)


def test_cells_alike_decide_then_cells_of_the_method_then_all() -> None:
    wide = {"rounds": 600}
    estimator = Estimator([finished("fedvpl", 50), finished("fedvpl", 70), finished("fedbt", 1.0)])
    assert estimator.seconds(cell("fedvpl", seed=9)) == 60
    g = guess("fedvpl", parse_config({}).model_dump(mode="json"))
    assert estimator.seconds(cell("fedvpl", **wide)) == pytest.approx(
        guess("fedvpl", parse_config({"federation": wide}).model_dump(mode="json")) * 60 / g
    )
    assert estimator.seconds(cell("fedbt")) == 1.0
    assert estimator.seconds(cell("oracle")) != Estimator([]).seconds(cell("oracle"))


def test_the_sentence() -> None:
    cells = [cell(m, s) for m in ("fedbt", "fedvpl") for s in range(3)]
    todo = {c.address: 60.0 for c in cells[:4]}
    text = describe("s", cells, todo, 2)
    assert text == "s: 6 cells (2 methods, 1 settings, 3 seeds), 2 finished before; 4 to run, about 60 s each, " \
        "2 at a time: about 2 min"  # fmt: skip
    assert describe("s", cells, {}, 2).endswith("nothing to run")
    assert [duration(s) for s in (-1, 40, 720, 12_000)] == ["0 s", "40 s", "12 min", "3 h 20 min"]
