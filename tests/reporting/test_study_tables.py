"""Tables and figures of a study from its summary."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console
from study_factory import check, summary

from fedvpa.reporting.study_plots import study_figure
from fedvpa.reporting.study_tables import grid, heading, in_order, markdown, metric_words, print_study

SUMMARY = summary([check("holds", ["pass"])])
NAMES = SUMMARY["study"]["names"]


def test_columns_in_the_order_of_their_numbers_and_a_dash_for_what_is_missing() -> None:
    head, lines = grid(SUMMARY["tables"][0], NAMES)
    assert head == ["method", "beta 0.1", "beta 1"]
    assert lines[0] == ["fedvpl", "0.710 [0.690, 0.730]", "0.800 [0.780, 0.820]"]
    assert lines[2] == ["fedbt", "0.500 [0.480, 0.520]", "–"]


def test_several_metrics_are_the_columns() -> None:
    head, lines = grid(SUMMARY["tables"][1], NAMES)
    assert head == ["method", "accuracy", "KL to the prior (nats)"]
    assert lines == [["fedvpl", "0.800 [0.780, 0.820]", "12.3 [12.3, 12.4]"], ["fedbt", "0.500 [0.480, 0.520]", "–"]]


def test_differences_have_signs_and_stars() -> None:
    _, lines = grid(SUMMARY["tables"][2], NAMES)
    assert lines == [["fedvpl", "-0.030 [-0.050, -0.010]*", "+0.010 [-0.010, +0.030]"]]


def test_markdown_has_as_many_cells_in_every_line() -> None:
    lines = markdown(SUMMARY["tables"][0], NAMES).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[1] == "| --- | ---: | ---: |"
    assert "No cell" in markdown({**SUMMARY["tables"][0], "points": []}, NAMES)


def test_printed_tables_end_with_the_verdicts() -> None:
    console = Console(file=io.StringIO(), width=120)
    print_study(SUMMARY, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "By beta" in text
    assert text.strip().endswith("holds: claim holds (shown; difference in accuracy +0.010 [+0.005, +0.015])")


def test_words() -> None:
    assert metric_words("group_accuracy/shorter") == "accuracy of shorter users"
    assert heading("method.beta", 0.1, NAMES) == "beta 0.1"
    assert heading("data.pairs_per_client", 4, {}) == "pairs per client 4"
    assert in_order([16, 4, 4]) == [4, 16]
    assert in_order([8, 2, "auto", None]) == [8, 2, "auto", None]


@pytest.mark.parametrize("figure", SUMMARY["figures"], ids=lambda f: f["name"])
def test_figures_are_svg_that_says_what_it_shows(figure: dict) -> None:
    svg = study_figure(figure, NAMES, "made-up")
    tree = ET.fromstring(svg)
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    assert figure["title"] in tree.attrib["aria-label"]
    texts = {t.text for t in tree.iter("{http://www.w3.org/2000/svg}text")}
    expected = {
        "lines": {"fedvpl", "fedvpa-gp", "fedbt", "beta", "0.1", "1", "accuracy", "chance"},
        "panels": {"accuracy", "KL to the prior (nats)", "active units", "beta"},
        "dots": {"fedvpl", "fedvpa-gp", "fedbt", "beta 0.1", "beta 1", "accuracy"},
    }
    assert expected[figure["name"]] <= texts
