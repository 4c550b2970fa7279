"""What benchmarks/results_page.py writes into the README."""

from __future__ import annotations

from dataclasses import replace

import pytest
from study_factory import study, summary

from fedvpa.errors import UserError
from fedvpa.reporting.study_page import Part
from results_page import MARKS, fill_readme

TREE = summary([])
MAIN = Part(study(name="main"), "main.yaml", TREE, "studies/main", "fedvpa study main.yaml --out DIR")
TEXT = f"# Title\n\n{MARKS[0]}\nold\n{MARKS[1]}\n\nThe rest.\n"


def test_the_readme_has_the_main_table_and_nothing_else_changes() -> None:
    filled = fill_readme(TEXT, [MAIN])
    assert filled.startswith("# Title\n\n")
    assert filled.endswith("\n\nThe rest.\n")
    assert "old" not in filled
    assert MAIN.command in filled
    assert f"| {TREE['tables'][0]['rows'][0]} |" in filled
    assert fill_readme(filled, [MAIN]) == filled


def test_a_main_study_that_was_not_run_is_named_as_such() -> None:
    filled = fill_readme(TEXT, [replace(MAIN, summary=None)])
    assert f"Not yet run: `{MAIN.command}`" in filled
    assert "|" not in filled


@pytest.mark.parametrize("mark", MARKS)
def test_a_readme_without_a_mark_is_not_written_over(mark: str) -> None:
    with pytest.raises(UserError, match="put both marks back"):
        fill_readme(TEXT.replace(mark, ""), [MAIN])
