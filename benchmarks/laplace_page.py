"""The tables of `laplace.py`, on the screen and as a page."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

ROUNDS = (
    "judgements",
    "people",
    "fedvpa-laplace, s",
    "fedvpa-gp, s",
    "ratio",
    "of the roofline",
    "MiB",
    "MiB, fedvpa-gp",
)
GROWTH = ("", "people", "answers", "components", "dimensions", "ms", "MiB", "of it the posterior")
TARGETS = ("", "target", "measured", "")


def tables(result: dict[str, Any]) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Title, columns and rows of each table."""
    rounds = [
        [r["world"], str(r["people"])]
        + [f"{r['seconds'][m]:.3f}" for m in ("fedvpa-laplace", "fedvpa-gp")]
        + [f"{r['ratio']:.1f}", f"{r['roofline_share']:.0%}"]
        + [f"{r['mib'][m]:.0f}" if "mib" in r else "" for m in ("fedvpa-laplace", "fedvpa-gp")]
        for r in result["rounds"]
    ]
    growth = [
        [
            r["of"],
            *(str(r[k]) for k in ("people", "answers", "components", "dim")),
            f"{1000 * r['seconds']:.1f}",
            *(f"{r[k]:.0f}" for k in ("mib", "result_mib")),
        ]
        for r in result["growth"]
    ]
    targets = [
        [t["name"], f"{t['target']:g}", f"{t['value']:.2f}", "met" if t["met"] else "missed"] for t in result["targets"]
    ]
    found = [("A round of training", ROUNDS, rounds), ("Targets", TARGETS, targets)]
    return [*found, ("How an inference grows", GROWTH, growth)] if growth else found


def show(result: dict[str, Any]) -> None:
    console = Console()
    for title, columns, rows in tables(result):
        table = Table(title=title)
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def page(result: dict[str, Any]) -> str:
    """Markdown."""
    machine, rates = result["environment"], result["machine"]
    lines = [
        "# The speed of fedvpa-laplace",
        "",
        "Written by `python benchmarks/laplace.py --page docs/laplace-speed.md`, which says what is timed; "
        f"{str(machine.get('commit') or 'unknown')[:12]}, {machine['processor']}, {machine['threads']} thread(s), "
        f"GEMM {rates['gemm_rate'] / 1e9:.0f} GFLOP/s, memory {rates['bandwidth'] / 1e9:.1f} GB/s.",
        "",
        "Defaults of both methods, 576 random features per item; everybody takes part in the round. Inferences are "
        "those of new people from 16 choices unless a table says otherwise, with the "
        f"{result['components']} components that training left, in {result['dim']} dimensions. "
        "MiB of a round: peak of a process; of an inference: what it adds to one.",
    ]
    for title, columns, rows in tables(result):
        lines += ["", f"## {title}", "", "| " + " | ".join(columns) + " |"]
        lines.append("| --- |" + " ---: |" * (len(columns) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
