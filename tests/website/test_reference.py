"""What the documentation takes from the code: every command, every key, and the worked example as it runs."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from typer.main import get_command

import reference
from fedvpa.alignment.config import AlignmentConfig
from fedvpa.apps.cli import app
from fedvpa.config import ExperimentConfig, valid_keys

DOCS = Path(__file__).parents[2] / "docs"


def cells(page: str) -> list[list[str]]:
    """The tables' rows; an escaped bar is no border."""
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("| `")]


def leaves(command: click.Command, name: str) -> list[str]:
    """Every command below, by the names that click knows."""
    if not isinstance(command, click.Group):
        return [name]
    return [leaf for inner, c in command.commands.items() for leaf in leaves(c, f"{name} {inner}")]


def test_every_command_has_a_heading_an_example_and_all_its_options() -> None:
    page = reference.commands_page()
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    assert sorted(sections) == sorted(leaves(get_command(app), "fedvpa"))
    assert all(re.search(rf"```bash\n{name}\b", text) for name, text in sections.items())
    for option in ("--methods TEXT", "--seeds INTEGER", "--jobs INTEGER", "--resume", "KEY=VALUE"):
        assert f"| `{option}` |" in sections["fedvpa compare"]
    assert "[bold]" not in page


def test_every_parameter_says_what_it_is() -> None:
    assert not [row for row in cells(reference.commands_page()) if not row[2].strip()]


def test_every_key_has_a_type_and_a_meaning() -> None:
    rows = cells(reference.configuration_page())
    shown = [row[0].strip(" `") for row in rows]
    assert sorted(shown) == sorted(valid_keys(ExperimentConfig) + valid_keys(AlignmentConfig))
    assert {len(row) for row in rows} == {5}
    assert not [row for row in rows if not row[1].strip() or not row[4].strip()]


@pytest.mark.parametrize(
    ("key", "kind", "default", "bounds"),
    [
        ("data.label_noise", "number", "`0.0`", "≥ 0.0, &lt; 0.5"),
        ("data.path", "text", "empty", ""),
        ("model.pooling", "`poe`, `mean`, `attention`", "`poe`", ""),
        ("method.prototypes", "integer or `auto`", "empty", "≥ 1"),
        ("method.tau_final", "number", "empty", "&gt; 0"),
        ("evaluation.context_sizes", "list of integer", "`[0, 1, 2, 4, 8, 16]`", ""),
        ("judging.blend", "list of number", "`[0.0, 0.25, 0.5, 0.75, 1.0]`", ""),
    ],
)
def test_types_defaults_and_bounds_are_in_words(key: str, kind: str, default: str, bounds: str) -> None:
    (row,) = [row for row in cells(reference.configuration_page()) if row[0].strip() == f"`{key}`"]
    assert [cell.strip() for cell in row[1:4]] == [kind, default, bounds]


def test_text_is_shown_as_it_is() -> None:
    assert reference.escaped_but_code("<W z> of hh-* costs $5 in `a|b`") == r"&lt;W z> of hh-\* costs \$5 in `a|b`"


def test_the_pages_in_the_repository_are_those_of_the_code() -> None:
    remedy = "write them again with `python website/reference.py`"
    assert (DOCS / "commands.md").read_text() == reference.commands_page(), remedy
    assert (DOCS / "configuration.md").read_text() == reference.configuration_page(), remedy
    page = (DOCS / "add-a-method.md").read_text()
    assert page == reference.with_listings(page), remedy


def test_the_worked_example_is_short_and_its_listing_is_the_file() -> None:
    code = (reference.EXAMPLE / "fedvpa_ditto.py").read_text()
    assert len(code.splitlines()) < 100
    page = (DOCS / "add-a-method.md").read_text()
    assert reference.with_listings(page.replace(code, "old\n")) == page
    with pytest.raises(ValueError, match=r"no block for fedvpa_ditto\.py"):
        reference.with_listings("a page without one")
