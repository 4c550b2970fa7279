"""What an alignment showed: the switching table for terminal, Markdown and page, and the figure of the blends.

All functions take ``alignment.json`` as a plain tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedvpa.reporting.pages import template
from fedvpa.reporting.plots import MARKERS, PALETTE, draw, panels

Result = Mapping[str, Any]


def switching_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the switching table."""
    cells = {(c["kind"], c["latent"], c["criterion"]): c for c in result["switching"]}
    criteria = list(dict.fromkeys(c["criterion"] for c in result["switching"]))
    kinds = dict.fromkeys((c["kind"], c["latent"]) for c in result["switching"])
    rows = []
    for kind, latent in kinds:
        mine = [cells[kind, latent, c] for c in criteria]
        shown = [f"{c['rate']:.2f} ({c['low']:.2f}-{c['high']:.2f})" for c in mine]
        rows.append([kind, latent or "-", *shown, f"{mine[0]['words']:.0f}", f"{mine[0]['capped']:.0%}"])
    return ["written by", "latent of", *criteria, "words", "capped"], rows


def caption(result: Result) -> str:
    """What the table's numbers are."""
    cell = result["switching"][0]
    fewer = {c["kind"]: c["prompts"] for c in result["switching"] if c["prompts"] < cell["prompts"]}
    apart = "".join(f", {n} for {kind}" for kind, n in fewer.items())
    return (
        "Win rate against the base model's response on each column's criterion, with its 95 % interval; "
        f"{cell['prompts']} prompts{apart}, which no part of training saw. Ties count half, every comparison is judged "
        f"in both orders. The base model writes {cell['baseline_words']:.0f} words on average."
    )


def exchanged_lines(result: Result) -> list[str]:
    """The policy under one latent against itself under the opposite one, a sentence each."""
    return [
        f"On {c['criterion']}, the policy under the latent of {c['latent']} wins {c['rate']:.2f} "
        f"({c['low']:.2f}-{c['high']:.2f}) against itself under that of {c['against']}."
        for c in result["exchanged"]
    ]


def print_alignment(result: Result, console: Console) -> None:
    """The table and the seconds of each phase."""
    if result["switching"]:
        heads, rows = switching_rows(result)
        table = Table(*heads, title="Switching table", title_justify="left", box=SIMPLE_HEAD, caption=caption(result))
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in (*exchanged_lines(result), *result["notes"]):
        console.print(line, highlight=False)
    spent = ", ".join(f"{name} {p['seconds']:.0f} s" for name, p in result["phases"].items())
    peak = ", ".join(f"{name} {gib:.1f} GiB" for name, gib in result["peak_gib"].items())
    console.print(f"Phases: {spent}; at most {peak}", highlight=False)


def markdown(result: Result) -> str:
    """The table, its caption and the sentences beneath it."""
    if not result["switching"]:
        return "Not judged: the data's groups have no rules for free text."
    heads, rows = switching_rows(result)
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", caption(result), "", *(f"* {s}" for s in exchanged_lines(result))])


def blend_figure(result: Result) -> str | None:
    """Mean criterion against the share of the first group's prototype, a panel per couple; None without blends."""
    couples = list(dict.fromkeys((b["group"], b["opposite"]) for b in result["blend"]))
    if not couples:
        return None

    def paint(figure: Any) -> None:
        for i, (ax, (group, opposite)) in enumerate(zip(panels(figure, len(couples), False), couples, strict=False)):
            mine = [b for b in result["blend"] if (b["group"], b["opposite"]) == (group, opposite)]
            x, y = [b["share"] for b in mine], [b["mean"] for b in mine]
            ax.fill_between(x, [b["low"] for b in mine], [b["high"] for b in mine], color=PALETTE[i], alpha=0.2, lw=0)
            ax.plot(x, y, marker=MARKERS[i], color=PALETTE[i])
            ax.set_title(f"{opposite} to {group}")
            ax.set_xlabel(f"share of {group}'s prototype")
            ax.set_ylabel(f"criterion of {group}")

    alt = "Mean of a criterion against the share of its prototype in a blend with the opposite one."
    return draw("blend", alt, 2.6 * -(-len(couples) // 2), paint)


def render(result: Result, config_yaml: str) -> str:
    """The page as text."""
    heads, rows = switching_rows(result) if result["switching"] else ([], [])
    figure = blend_figure(result)
    return template("alignment.html.j2").render(
        result=result,
        heads=heads,
        rows=rows,
        caption=caption(result) if rows else "",
        sentences=exchanged_lines(result),
        blend=None if figure is None else Markup(figure),
        config=config_yaml.strip(),
    )
