"""What `fedvpa demo` prints: one table, its verdict in a sentence, and one pair of items that flips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

ASKED = {"known-items": "known", "new-items": "new"}
LEVEL = 0.05
"""A difference counts if its p is below."""


def print_demo(found: Mapping[str, Any], console: Console) -> None:
    """Prints what `apps.demo.demo` returns."""
    sizes, asked = found["sizes"], found["asked"]
    title = "Share of unseen people's preferences that are predicted, by the number of their answers"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for part in asked:
        for size in sizes:
            table.add_column(f"{ASKED[part['queries']]}\n{size}", justify="right", no_wrap=True)
    for method in asked[0]["accuracy"]:
        values = [v for part in asked for v in part["accuracy"][method]]
        table.add_row(method, *(f"{v:.3f}" for v in values))
    console.print(table)
    console.print(Text("known: others have judged the items; new: nobody has. The people are new in both.", "dim"))
    plain = Console(file=console.file, soft_wrap=True, highlight=False, markup=False)
    for part in asked:
        plain.print(verdict(part, sizes[-1]))
    for line in (*_flips(found["flips"]), *found["notes"]):
        plain.print(line)
    plain.print(f"Selector: {found['selector']}")
    for path in found["reports"]:
        plain.print(f"Report: {path}")


def verdict(part: Mapping[str, Any], size: int) -> str:
    """One sentence: whether ours predicts better than the best other method, and than one prediction for everybody."""
    ours, common = "fedvpa-laplace", "fedbt"
    kind = ASKED[part["queries"]].capitalize()
    head = f"{kind} items, {size} answers: {ours} ({part['accuracy'][ours][-1]:.3f}) predicts "
    names = {p["method"]: f"the best other method, {p['method']}" for p in part["paired"]}
    if common in names:
        alone = len(names) == 1
        names[common] = f"{'the best other method, which is ' if alone else ''}no personalisation ({common})"
    said = [f"{_relation(p)} {names[p['method']]} ({_difference(p)})" for p in part["paired"]]
    return f"{head}{', and '.join(said)}; {part['people']} people, {part['pairs']:,} pairs, people resampled."


def _relation(paired: Mapping[str, Any]) -> str:
    if paired["p"] >= LEVEL:
        return "neither better nor worse, as far as these people tell, than"
    return "better than" if paired["difference"] > 0 else "worse than"


def _difference(paired: Mapping[str, Any]) -> str:
    interval = f"[{paired['ci_low']:+.3f}, {paired['ci_high']:+.3f}]"
    return f"{paired['difference']:+.3f} {interval}, p = {paired['p']:.3f}"


def _flips(flips: Mapping[str, Any]) -> list[str]:
    """The clearest couple, with how many couples there are."""
    couples = f"{flips['couples']:,} couples of unseen people disagree about the same pair of known items"
    share = f"; in {flips['right']:,} both are predicted rightly after {flips['answers']} answers"
    clearest = flips["clearest"]
    if clearest is None:
        return ["", f"{couples}{share}."]
    return [
        "",
        f"{couples}{share}. The clearest:",
        f"  A  {clearest['a']}",
        f"  B  {clearest['b']}",
        f"  One person prefers A: p(A over B) = {clearest['first']:.2f}. "
        f"Another prefers B: p(A over B) = {clearest['second']:.2f}.",
        "",
    ]
