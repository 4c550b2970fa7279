"""Addresses of cells: what was finished before a key existed is found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvpa.apps.cells import _SINCE, Cell
from fedvpa.config import ExperimentConfig, load_config

CONFIG = Path(__file__).parents[2] / "configs" / "hh-attributes-4.yaml"


def address(*overrides: str) -> str:
    return Cell("fedvpa-gp", 0).address(load_config(CONFIG, overrides))


def test_a_cell_keeps_the_address_that_it_had_before_newer_keys() -> None:
    assert address() == "2a7bf4f41548ada4ee8e"


@pytest.mark.parametrize(
    "override",
    ["method.prior_components=32", "faults.kinds=[nan]", "defence.reject=true", "federation.aggregation=median"],
)
def test_a_newer_key_that_is_used_makes_another_address(override: str) -> None:
    assert address(override) != address()


def test_every_newer_key_has_its_neutral_value_by_default() -> None:
    tree = ExperimentConfig().model_dump(mode="json")
    assert {path: tree[path[0]][path[1]] for path in _SINCE} == _SINCE
