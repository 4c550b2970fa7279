"""The tables of a run: plain rows for ``--json`` and the report, Rich tables for the terminal.

All functions take results as `fedvpa.evaluation.results.read_results` returns them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

Results = Mapping[str, Any]
Entry = Mapping[str, Any]

NOT_COMPETING = ("oracle", "oracle-clients", "central-vpl", "fedvpa-gp+labels")
"""Methods that see what a federated one may not: true groups, or all data in one place."""


def methods_of(results: Results) -> list[str]:
    """The methods, in the order of the rows."""
    return list(dict.fromkeys(r["method"] for r in results["rows"]))


def context_sizes_of(results: Results) -> list[int]:
    """The context sizes, ascending."""
    return sorted({r["context_size"] for r in results["rows"] if r["context_size"] is not None})


def main_context_size(results: Results, wanted: int | None = None) -> int | None:
    """The context size of the main table: the largest evaluated one that does not exceed ``wanted``."""
    sizes = context_sizes_of(results)
    fitting = [s for s in sizes if wanted is None or s <= wanted]
    return max(fitting or sizes, default=None)


def default_entry(results: Results, method: str, population: str, context_size: int | None) -> Entry | None:
    """The summary entry of a method's default inference; one without a context serves for every size."""
    for entry in results["summary"]:
        mine = entry["method"] == method and entry["population"] == population and entry["default"]
        if mine and entry["context_size"] in (context_size, None):
            return entry
    return None


def metric(entry: Entry | None, name: str) -> float | None:
    """Mean of a metric of a summary entry, or None."""
    if entry is None or name not in entry["metrics"]:
        return None
    return float(entry["metrics"][name]["mean"])


def main_rows(results: Results, context_size: int | None) -> list[dict[str, Any]]:
    """A plain row per method at one context size, default inference.

    Metrics other than accuracy are those of unseen users, or of seen users where there are no unseen ones.
    """
    rows = []
    for method in methods_of(results):
        seen = default_entry(results, method, "seen", context_size)
        unseen = default_entry(results, method, "unseen", context_size)
        shown = unseen or seen
        if shown is None:
            continue
        row: dict[str, Any] = {
            "method": method,
            "inference": shown["inference"],
            "context_size": shown["context_size"],
            "seeds": shown["seeds"],
        }
        for population, entry in (("seen", seen), ("unseen", unseen)):
            row[population] = None if entry is None else entry["mean"]
            row[f"{population}_low"] = None if entry is None else entry["ci_low"]
            row[f"{population}_high"] = None if entry is None else entry["ci_high"]
        for key, name in _METRICS.items():
            value = metric(shown, name)
            row[key] = metric(seen, name) if value is None else value
        rows.append(row)
    return rows


_METRICS = {
    "conflict": "conflict_accuracy",
    "worst_group": "worst_group_accuracy",
    "switch_gap": "switch_gap",
    "flip_rate": "flip_rate",
    "active_units": "active_units",
    "cluster_purity": "cluster_purity",
    "bytes_up": "bytes_up",
    "bytes_down": "bytes_down",
    "seconds_per_round": "seconds_per_round",
    "epsilon": "epsilon",
}


def curve_rows(results: Results, population: str) -> list[dict[str, Any]]:
    """A plain row per method and context size: accuracy of the default inference with its interval."""
    keys = ("method", "population", "inference", "context_size", "seeds", "mean", "ci_low", "ci_high")
    found = [e for e in results["summary"] if e["default"] and e["population"] == population]
    order = methods_of(results)
    found.sort(key=lambda e: (order.index(e["method"]), -1 if e["context_size"] is None else e["context_size"]))
    return [{k: e[k] for k in keys} for e in found]


def paired_rows(results: Results, population: str, context_size: int | None) -> list[dict[str, Any]]:
    """A plain row per method other than the reference: its difference in accuracy to the reference."""
    rows = []
    for method in methods_of(results):
        entry = default_entry(results, method, population, context_size)
        for paired in entry["paired"] if entry else ():
            if paired["context_size"] in (context_size, None):
                rows.append({"method": method, "population": population, **paired})
    return rows


def main_population(results: Results) -> str:
    """``unseen`` where there are unseen users, else ``seen``."""
    return "unseen" if any(r["population"] == "unseen" for r in results["rows"]) else "seen"


def plain_tables(results: Results, context_size: int | None = None) -> dict[str, Any]:
    """Everything that `print_tables` shows, as plain rows for ``--json FILE``."""
    size = main_context_size(results, context_size)
    return {
        "context_size": size,
        "main": main_rows(results, size),
        "context_sizes": [row for p in ("seen", "unseen") for row in curve_rows(results, p)],
        "paired": [row for p in ("seen", "unseen") for row in paired_rows(results, p, size)],
    }


def print_tables(results: Results, console: Console, context_size: int | None = None) -> None:
    """Prints the main table, the context-size curve and the paired differences.

    Args:
        results: as `fedvpa.evaluation.results.read_results` returns them.
        console: where to; from 120 columns on the main table is one, below that two.
        context_size: of the main table; by default the largest.
    """
    size = main_context_size(results, context_size)
    population = main_population(results)
    rows = main_rows(results, size)
    shown = "" if size is None else f", {size} context pairs"
    best = best_method(rows, population)
    if console.width >= 120:
        console.print(_grid(f"Accuracy and use of the latent{shown}", [*ACCURACY, *LATENT, *COST], rows, best))
    else:
        console.print(_grid(f"Accuracy{shown}", ACCURACY, rows, best))
        console.print(_grid(f"Latent and cost{shown}", [ACCURACY[0], *LATENT, *COST], rows, best))
    console.print(Text(_legend(results, population), style="dim"))
    if len(context_sizes_of(results)) > 1:
        console.print(_curve_table(results, population))
    if paired := paired_rows(results, population, size):
        console.print(_paired_table(paired))
    for note in results["notes"]:
        console.print(Text(f"Note: {note}", style="yellow"))


def _legend(results: Results, population: str) -> str:
    seeds = len({r["seed"] for r in results["rows"]})
    over = f"{seeds} seeds and test pairs" if seeds > 1 else "test pairs only (one seed)"
    return f"± half of the 95 % interval over {over}. Other metrics: {population} users."


ACCURACY = ["method", "inference", "seen", "unseen", "conflict", "worst_group"]
LATENT = ["switch_gap", "flip_rate", "active_units", "cluster_purity"]
COST = ["kb", "seconds_per_round"]
HEADS = {
    "method": "method",
    "inference": "inference",
    "seen": "seen",
    "unseen": "unseen",
    "conflict": "con-\nflict",
    "worst_group": "worst\ngroup",
    "switch_gap": "switch\ngap",
    "flip_rate": "flip",
    "active_units": "active\nunits",
    "cluster_purity": "purity",
    "kb": "KB up/down",
    "seconds_per_round": "s/\nround",
}


def cell(row: Mapping[str, Any], column: str) -> str:
    """A cell of the main table as text; a dash where there is no value."""
    if column in ("method", "inference"):
        return "–" if row[column] == "none" else str(row[column])
    if column in ("seen", "unseen"):
        return with_half_width(row[column], row[f"{column}_low"], row[f"{column}_high"])
    if column == "kb":
        if row["bytes_up"] is None and row["bytes_down"] is None:
            return "–"
        return f"{_kb(row['bytes_up'])}/{_kb(row['bytes_down'])}"
    value = row[column]
    if value is None:
        return "–"
    return (
        seconds(value) if column == "seconds_per_round" else f"{value:.2f}" if column in LATENT[1:] else f"{value:.3f}"
    )


def with_half_width(mean: float | None, low: float | None, high: float | None) -> str:
    """``0.861 ±0.012``; without an interval only the mean."""
    if mean is None:
        return "–"
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} ±{(high - low) / 2:.3f}"


def seconds(value: float) -> str:
    """A duration in seconds with two significant digits below 10."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _kb(value: float | None) -> str:
    return "–" if value is None else f"{value / 1000:,.0f}" if value >= 10_000 else f"{value / 1000:.1f}"


def filled_columns(columns: Iterable[str], rows: list[dict[str, Any]]) -> list[str]:
    """The columns in which some row of the main table has a value."""
    return [c for c in columns if any(cell(r, c) != "–" for r in rows)]


def best_method(rows: list[dict[str, Any]], population: str) -> str | None:
    """The most accurate method that competes (`NOT_COMPETING`), or None where there are not two."""
    scored = [r for r in rows if r["method"] not in NOT_COMPETING and r[population] is not None]
    return max(scored, key=lambda r: r[population])["method"] if len(scored) > 1 else None


def _grid(title: str, columns: Iterable[str], rows: list[dict[str, Any]], best: str | None) -> Table:
    table = _table(title)
    columns = filled_columns(columns, rows)
    for c in columns:
        left = c in ("method", "inference")
        table.add_column(HEADS[c], justify="left" if left else "right", no_wrap=True, min_width=_min_width(c, rows))
    for row in rows:
        table.add_row(*(Text(cell(row, c)) for c in columns), style="bold" if row["method"] == best else None)
    return table


def _min_width(column: str, rows: list[dict[str, Any]]) -> int:
    return max(len(cell(r, column)) for r in rows) if rows else 0


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )


def _curve_table(results: Results, population: str) -> Table:
    sizes = context_sizes_of(results)
    table = _table(f"Accuracy of {population} users by number of context pairs")
    table.add_column("method", no_wrap=True, min_width=max(len(m) for m in methods_of(results)))
    for size in sizes:
        table.add_column(str(size), justify="right", no_wrap=True)
    rows = curve_rows(results, population)
    for method in methods_of(results):
        means = {r["context_size"]: r["mean"] for r in rows if r["method"] == method}
        if means:
            values = [means.get(s, means.get(None)) for s in sizes]
            table.add_row(Text(method), *("–" if v is None else f"{v:.3f}" for v in values))
    return table


def _paired_table(rows: list[dict[str, Any]]) -> Table:
    table = _table(f"Difference to {rows[0]['reference']}, {rows[0]['population']} users, same seeds and pairs")
    table.add_column("method", no_wrap=True, min_width=max(len(r["method"]) for r in rows))
    for head in ("difference", "95 % interval", "p", "p (Holm)"):
        table.add_column(head, justify="right", no_wrap=True)
    for r in rows:
        interval = f"[{r['ci_low']:+.3f}, {r['ci_high']:+.3f}]"
        table.add_row(
            Text(r["method"]), f"{r['difference']:+.3f}", Text(interval), f"{r['p']:.3f}", f"{r['p_holm']:.3f}"
        )
    return table
