"""The verdict of `fedvpa demo` says what the numbers say."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from fedvpa.reporting.demo_text import print_demo, verdict


def paired(method: str, difference: float, p: float) -> dict[str, Any]:
    return {
        "method": method,
        "difference": difference,
        "ci_low": difference - 0.01,
        "ci_high": difference + 0.01,
        "p": p,
    }


def part(*compared: dict[str, Any], queries: str = "known-items") -> dict[str, Any]:
    accuracy = {"fedbt": [0.6] * 4, "fedvpl": [0.6, 0.6, 0.6, 0.65], "fedvpa-laplace": [0.61, 0.62, 0.63, 0.7]}
    return {"queries": queries, "people": 239, "pairs": 12345, "accuracy": accuracy, "paired": list(compared)}


@pytest.mark.parametrize(
    ("difference", "p", "words"),
    [
        (0.05, 0.001, "predicts better than the best other method, fedvpl (+0.050 [+0.040, +0.060], p = 0.001)"),
        (-0.05, 0.001, "predicts worse than the best other method, fedvpl (-0.050 [-0.060, -0.040], p = 0.001)"),
        (0.05, 0.06, "predicts neither better nor worse, as far as these people tell, than the best other method"),
    ],
)
def test_verdict(difference: float, p: float, words: str) -> None:
    said = verdict(part(paired("fedvpl", difference, p), paired("fedbt", 0.1, 0.001)), 32)
    assert said.startswith(f"Known items, 32 answers: fedvpa-laplace (0.700) {words}")
    assert ", and better than no personalisation (fedbt) (+0.100" in said
    assert said.endswith("; 239 people, 12,345 pairs, people resampled.")


def test_verdict_where_no_personalisation_is_the_best_other_method() -> None:
    said = verdict(part(paired("fedbt", -0.1, 0.001), queries="new-items"), 32)
    assert said.startswith("New items, 32 answers: fedvpa-laplace (0.700) predicts worse than the best other method")
    assert "which is no personalisation (fedbt) (-0.100" in said


@pytest.mark.parametrize("clearest", [None, {"a": "Build [it]", "b": "Leave it", "first": 0.91, "second": 0.08}])
def test_print(clearest: dict[str, Any] | None) -> None:
    compared = paired("fedvpl", 0.05, 0.001), paired("fedbt", 0.1, 0.001)
    found = {
        "sizes": (0, 2, 8, 32),
        "asked": [part(*compared), part(*compared, queries="new-items")],
        "flips": {"answers": 32, "couples": 57, "right": 31, "clearest": clearest},
        "notes": ["Data was gathered by people."],
        "selector": "out/demo/known-items/cells/fedvpa-laplace-seed0",
        "reports": ["out/demo/known-items/report.html"],
    }
    console = Console(file=StringIO(), width=80)
    print_demo(found, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    (row,) = (line.split() for line in shown.splitlines() if line.strip().startswith("fedvpa-laplace"))
    assert row == ["fedvpa-laplace", *("0.610", "0.620", "0.630", "0.700") * 2]
    assert "57 couples of unseen people disagree about the same pair of known items; in 31 both" in shown
    assert "Data was gathered by people." in shown
    assert ("p(A over B) = 0.91" in shown and "Build [it]" in shown) == (clearest is not None)
