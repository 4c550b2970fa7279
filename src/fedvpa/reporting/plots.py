"""The figures of the report, each a function from plain data to one SVG element as text.

Matplotlib's object interface with the Agg canvas; no pyplot, no global state. Text stays text, colours are those of
Okabe and Ito (distinguishable with every common kind of colour vision), and no colour stands without a shape or dashes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedvpa.reporting.tables import Results, context_sizes_of, curve_rows, main_rows, methods_of

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5539", "#5B5B5B", "#332288")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2, 2, 2)))
INK, SOFT, FAINT = "#1d2129", "#5b6270", "#d9dce2"
LEGEND_COLUMNS = 3
WIDTH = 5.8  # inches; the page scales figures down where there is less room

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a group's name may hold a dollar sign
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


def draw(name: str, alt: str, height: float, paint: Callable[[Figure], None]) -> str:
    """Paints a figure and returns it as one ``<svg>`` element.

    Args:
        name: prefix of all ids inside, unique on the page.
        alt: what a reader who cannot see the figure is told (``aria-label``).
        height: in inches; the width is `WIDTH`.
        paint: fills the figure.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's fonts draw the text
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for pattern in ('id="', 'href="#', "url(#"):
        svg = svg.replace(pattern, f"{pattern}{name}-")
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{_attribute(alt)}" ', 1)


def _attribute(text: str) -> str:
    return label(text, 2000).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def label(text: str, limit: int = 28) -> str:
    """A name as it is written into a figure: printable, on one line, not too long."""
    clean = "".join(c if c.isprintable() else " " for c in str(text))
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def method_style(methods: Sequence[str], method: str) -> dict[str, Any]:
    """Colour, marker and dashes of a method, the same in every figure of a report."""
    i = methods.index(method)
    return {
        "color": PALETTE[i % len(PALETTE)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i % len(DASHES)],
    }


def comparison(results: Results, context_size: int | None, alt: str) -> str:
    """Dot plot of the main table: accuracy of seen and unseen users with 95 % intervals, a line at chance."""
    rows, methods = main_rows(results, context_size), methods_of(results)

    def paint(figure: Figure) -> None:
        ax = figure.add_subplot()
        for y, row in enumerate(rows):
            color = method_style(methods, row["method"])["color"]
            for population, shift, face in (("unseen", -0.13, color), ("seen", 0.13, "white")):
                mean, low, high = (row[f"{population}{end}"] for end in ("", "_low", "_high"))
                if mean is None:
                    continue
                if low is not None:
                    ax.plot([low, high], [y + shift] * 2, color=color, linewidth=1.8, solid_capstyle="butt")
                ax.plot(mean, y + shift, "o", markersize=6.5, color=color, markerfacecolor=face, markeredgewidth=1.5)
        ax.axvline(0.5, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
        ax.set_yticks(range(len(rows)), [label(r["method"]) for r in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("accuracy (dashed: chance)")
        for population, face in (("unseen", SOFT), ("seen", "white")):
            if any(r[population] is not None for r in rows):
                ax.plot([], [], "o", color=SOFT, markerfacecolor=face, markeredgewidth=1.5, label=f"{population} users")
        figure.legend(loc="outside upper right", ncols=2)

    return draw("comparison", alt, 1.2 + 0.42 * len(rows), paint)


def context_curve(results: Results, population: str, alt: str) -> str:
    """Accuracy of each method's default inference against the context size, with its interval as a band."""
    sizes, methods, rows = context_sizes_of(results), methods_of(results), curve_rows(results, population)

    def paint(figure: Figure) -> None:
        ax = figure.add_subplot()
        for method in methods:
            own = [r for r in rows if r["method"] == method]
            style = method_style(methods, method)
            if own and own[0]["context_size"] is None:
                ax.plot([0, len(sizes) - 1], [own[0]["mean"]] * 2, **{**style, "marker": ""}, label=label(method))
            elif own:
                x = [sizes.index(r["context_size"]) for r in own]
                ax.plot(x, [r["mean"] for r in own], markersize=5, label=label(method), **style)
                if all(r["ci_low"] is not None for r in own):
                    low, high = [r["ci_low"] for r in own], [r["ci_high"] for r in own]
                    ax.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        ax.set_xticks(range(len(sizes)), [str(s) for s in sizes])
        ax.set_xlabel("context pairs of the user")
        ax.set_ylabel(f"accuracy, {population} users")
        figure.legend(loc="outside upper left", ncols=3)

    return draw("curve", alt, 3.7 + 0.1 * len(methods), paint)


def accuracy_by_round(metrics: Sequence[Mapping[str, Any]], methods: Sequence[str], alt: str) -> str:
    """Accuracy of the validation users against rounds: a panel per method, a line per group, a band over seeds."""
    records = [m for m in metrics if m["validation"] is not None]
    methods = [m for m in methods if any(r["method"] == m for r in records)]
    groups = list(dict.fromkeys(g for r in records for g in (r["validation"]["group_accuracy"] or {})))

    def paint(figure: Figure) -> None:
        for ax, method in zip(panels(figure, len(methods)), methods, strict=False):
            own = [r for r in records if r["method"] == method]
            for i, group in enumerate(groups):
                series = [(r["round"], (r["validation"]["group_accuracy"] or {}).get(group)) for r in own]
                style = {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[i % len(DASHES)]}
                _band(ax, series, label=label(group), **style)
            _band(
                ax,
                [(r["round"], r["validation"]["accuracy"]) for r in own],
                label="all users",
                color=INK,
                linewidth=2.4,
            )
            ax.axhline(0.5, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
            ax.set_title(label(method))
        figure.supxlabel("round", fontsize=10)
        figure.supylabel("validation accuracy (dashed: chance)", fontsize=10)
        shared_legend(figure)

    return draw("rounds", alt, grid_height(len(methods)), paint)


def _band(ax: Axes, series: Iterable[tuple[int, float | None]], **style: Any) -> None:
    """Mean over seeds at each x, and the range over seeds as a band."""
    by_x: dict[int, list[float]] = {}
    for x, y in series:
        if y is not None:
            by_x.setdefault(x, []).append(y)
    xs = sorted(by_x)
    if xs:
        ax.plot(xs, [np.mean(by_x[x]) for x in xs], **style)
        low, high = [min(by_x[x]) for x in xs], [max(by_x[x]) for x in xs]
        ax.fill_between(xs, low, high, color=style["color"], alpha=0.12, linewidth=0)


def loss_shares(
    metrics: Sequence[Mapping[str, Any]], methods: Sequence[str], weights: Mapping[str, float], alt: str
) -> str:
    """What the loss consists of, round by round: stacked shares of its weighted terms, a panel per method.

    Args:
        metrics: lines of ``metrics.jsonl``.
        methods: those to show.
        weights: weight of each term (``reconstruction``, ``kl``, ``ortho``, ``mixture``) in the loss.
        alt: text for readers who cannot see it.
    """
    hatches = ("", "///", "", "\\\\\\")

    def paint(figure: Figure) -> None:
        for ax, method in zip(panels(figure, len(methods)), methods, strict=True):
            rounds, shares = term_shares([m for m in metrics if m["method"] == method], weights)
            areas = ax.stackplot(
                rounds, shares, colors=PALETTE[: len(weights)], alpha=0.75, labels=[TERMS[w] for w in weights]
            )
            for area, hatch in zip(areas, hatches, strict=False):
                area.set(hatch=hatch, edgecolor="white", linewidth=0.4)
            ax.set(ylim=(0, 1), xlim=(rounds[0], max(rounds[-1], rounds[0] + 1)))
            ax.set_title(label(method))
        figure.supxlabel("round", fontsize=10)
        figure.supylabel("share of the loss", fontsize=10)
        shared_legend(figure)

    return draw("losses", alt, grid_height(len(methods)), paint)


TERMS = {
    "reconstruction": "reconstruction",
    "kl": "β · KL",
    "ortho": "λ · orthogonal",
    "mixture": "mixture predictive",
    "cluster": "cluster fit",
}


def term_shares(records: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> tuple[list[int], np.ndarray]:
    """Rounds and (terms, rounds) shares of the weighted loss terms' absolute values, summed over seeds."""
    rounds = sorted({r["round"] for r in records})
    total = np.zeros((len(weights), len(rounds)))
    column = {t: i for i, t in enumerate(rounds)}
    for r in records:
        for row, (term, weight) in enumerate(weights.items()):
            total[row, column[r["round"]]] += abs(weight * (r[term] or 0.0))
    return rounds, total / np.maximum(total.sum(0), 1e-12)


def cost(rows: Sequence[Mapping[str, Any]], alt: str) -> str:
    """Cost of a round per method: bytes up and down of one client, and seconds.

    Args:
        rows: as `fedvpa.reporting.tables.main_rows` returns them; methods without any cost are left out.
        alt: text for readers who cannot see it.
    """
    rows = [r for r in rows if r["bytes_up"] is not None or r["seconds_per_round"] is not None]

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        y = np.arange(len(rows))
        largest = max((r[k] or 0.0) for r in rows for k in ("bytes_up", "bytes_down"))
        unit, divisor = ("MB", 1e6) if largest >= 1e6 else ("KB", 1e3)
        for name, shift, color, hatch in (("up", -0.19, PALETTE[0], ""), ("down", 0.19, PALETTE[4], "////")):
            values = [(r[f"bytes_{name}"] or 0.0) / divisor for r in rows]
            bars = left.barh(y + shift, values, 0.36, color=color, hatch=hatch, edgecolor="white", label=name)
            left.bar_label(bars, [f"{v:.2f}" for v in values], padding=3, fontsize=8)
        left.set_title(f"{unit} per client and round")
        values = [r["seconds_per_round"] or 0.0 for r in rows]
        right.bar_label(
            right.barh(y, values, 0.5, color=PALETTE[2]), [f"{v:.2g}" for v in values], padding=3, fontsize=8
        )
        right.set_title("seconds per round")
        left.set_yticks(y, [label(r["method"]) for r in rows])
        left.invert_yaxis()
        for ax in (left, right):
            ax.grid(visible=False, axis="y")
            ax.margins(x=0.18)
        figure.legend(loc="outside upper right", ncols=2)

    return draw("cost", alt, 1.2 + 0.42 * len(rows), paint)


def panels(figure: Figure, count: int, share_y: bool = True) -> list[Axes]:
    """Small multiples with shared axes, in at most two columns; without `share_y` each has its own y axis."""
    columns = min(2, count)
    grid = figure.subplots(math.ceil(count / columns), columns, sharex=True, sharey=share_y, squeeze=False).ravel()
    for ax in grid[count:]:
        ax.set_axis_off()
    if count < len(grid):
        grid[count - columns].xaxis.set_tick_params(labelbottom=True)
    return list(grid[:count])


def grid_height(count: int) -> float:
    """Inches for `count` small multiples."""
    return 3.6 if count == 1 else 0.9 + 2.1 * math.ceil(count / 2)


def shared_legend(figure: Figure) -> None:
    """One legend for all panels, each entry once."""
    entries = {text: handle for ax in figure.axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    columns = min(LEGEND_COLUMNS, len(entries))
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns)


def legend_rows(entries: int) -> int:
    """Rows that `shared_legend` takes."""
    return math.ceil(entries / LEGEND_COLUMNS)
