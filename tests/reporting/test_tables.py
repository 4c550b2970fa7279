from __future__ import annotations

import io
from typing import Any

import pytest
from results_factory import METHODS, SIZES, make_results
from rich.console import Console

from fedvpa.reporting import tables


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return make_results()


def printed(results: dict[str, Any], width: int, size: int | None = 8) -> str:
    console = Console(file=io.StringIO(), width=width)
    tables.print_tables(results, console, size)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 120, 160])
def test_every_width_shows_whole_names_and_all_columns(results: dict[str, Any], width: int):
    text = printed(results, width)
    assert all(f"{m} " in text for m in METHODS)
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for head in ("inference", "unseen", "conflict".replace("con", ""), "purity", "KB up/down", "p (Holm)", "round"):
        assert head in text
    assert "Note: Labels are made by rules, not by people." in text
    entry = tables.default_entry(results, "fedvpa-gp", "unseen", 8)
    assert entry is not None
    assert tables.with_half_width(entry["mean"], entry["ci_low"], entry["ci_high"]) in text


def test_narrow_terminals_get_two_tables(results: dict[str, Any]):
    assert "Latent and cost, 8 context pairs" in printed(results, 80)
    assert "Latent and cost" not in printed(results, 120)


def test_main_rows_hold_the_default_inference_at_the_size_asked_for(results: dict[str, Any]):
    rows = {r["method"]: r for r in tables.main_rows(results, 8)}
    assert list(rows) == list(METHODS)
    assert rows["fedvpa-gp"]["inference"] == "mixture"
    assert rows["fedbt"]["context_size"] is None
    expected = [r["accuracy"] for r in results["rows"] if r["method"] == "fedvpa-gp" and r["population"] == "unseen"
                and r["default"] and r["context_size"] == 8]  # fmt: skip
    assert rows["fedvpa-gp"]["unseen"] == pytest.approx(sum(expected) / 3)
    assert rows["fedvpa-gp"]["unseen_low"] < rows["fedvpa-gp"]["unseen"] < rows["fedvpa-gp"]["unseen_high"]
    assert rows["oracle"]["bytes_up"] is None


def test_main_context_size(results: dict[str, Any]):
    assert [tables.main_context_size(results, w) for w in (8, 5, None)] == [8, 4, 16]
    assert tables.main_context_size(make_results(("fedbt",), 1), 8) is None


def test_curve_rows_are_sorted(results: dict[str, Any]):
    rows = [r for r in tables.curve_rows(results, "unseen") if r["method"] == "fedvpl"]
    assert [r["context_size"] for r in rows] == list(SIZES)


def test_paired_rows_compare_with_fedvpa_gp(results: dict[str, Any]):
    rows = tables.paired_rows(results, "unseen", 8)
    assert [r["method"] for r in rows] == [m for m in METHODS if m != "fedvpa-gp"]
    assert {r["reference"] for r in rows} == {"fedvpa-gp"}
    assert next(r for r in rows if r["method"] == "fedbt")["difference"] < -0.3


def test_plain_tables_are_what_is_printed(results: dict[str, Any]):
    plain = tables.plain_tables(results, 8)
    assert plain["context_size"] == 8
    assert plain["main"] == tables.main_rows(results, 8)
    assert {r["population"] for r in plain["paired"]} == {"seen", "unseen"}


def test_only_seen_users_one_seed_no_groups():
    rows_of_seen = make_results(("fedvpl",), 1, [])
    rows_of_seen["rows"] = [r for r in rows_of_seen["rows"] if r["population"] == "seen"]
    rows_of_seen["summary"] = [e for e in rows_of_seen["summary"] if e["population"] == "seen"]
    text = printed(rows_of_seen, 80)
    assert "unseen" not in text
    assert "flict" not in text
    assert "test pairs only (one seed)" in text


def test_oracle_is_not_the_best_method(results: dict[str, Any]):
    assert tables.best_method(tables.main_rows(results, 8), "unseen") == "fedvpa-gp"
    assert tables.best_method(tables.main_rows(make_results(("oracle", "fedbt")), 8), "unseen") is None


def test_hostile_names_are_printed_as_they_are():
    hostile = make_results(("fedvpl", "fedbt"), 1)
    for r in [*hostile["rows"], *hostile["summary"]]:
        r["method"] = {"fedvpl": "[red]x[/red]"}.get(r["method"], r["method"])
    assert "[red]x[/red]" in printed(hostile, 120)


@pytest.mark.parametrize(("value", "text"), [(123.4, "123"), (1.26, "1.3"), (0.314, "0.31"), (0.00213, "0.0021")])
def test_seconds(value: float, text: str):
    assert tables.seconds(value) == text


def test_cells_without_values():
    row: dict[str, Any] = dict.fromkeys(
        ["seen", "seen_low", "seen_high", "switch_gap", "bytes_up", "bytes_down", "seconds_per_round"]
    )
    assert [tables.cell(row, c) for c in ("seen", "switch_gap", "kb", "seconds_per_round")] == ["–"] * 4
    assert tables.cell({**row, "bytes_up": 1536.0}, "kb") == "1.5/–"
    assert tables.with_half_width(0.5, None, None) == "0.500"
