"""A study's figures from the points of its summary file, each as one SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvpa.reporting.plots import (
    DASHES,
    INK,
    MARKERS,
    PALETTE,
    SOFT,
    draw,
    grid_height,
    label,
    legend_rows,
    panels,
    shared_legend,
)
from fedvpa.reporting.study_tables import called, heading, in_order, metric_words, text

Point = Mapping[str, Any]
CHANCE = "chance"
"""The legend's word for the dashed line."""
ROOM = 20
"""Characters of tick labels that stand beside one another in half of the page's width."""


def study_figure(figure: Mapping[str, Any], names: Mapping[str, str], study: str) -> str:
    """One figure.

    Args:
        figure: an entry of ``figures`` of a summary file, with points.
        names: how dimensions are called.
        study: the study's name, for ids that are unique on a page of several figures.
    """
    points = figure["points"]
    facets = in_order(_facet(figure, p) for p in points)
    if len(facets) > 1:  # what is the same for every panel (a ceiling, say) stands in each
        facets = [f for f in facets if f is not None]
    series = in_order(_series(figure, p) for p in points)
    places = in_order(p["at"].get(figure["x"]) for p in points)
    places = [x for x in places if x is not None or figure["kind"] == "dots"]
    paint_panel = _dots if figure["kind"] == "dots" else _lines

    def paint(canvas: Figure) -> None:
        for i, (ax, facet) in enumerate(
            zip(panels(canvas, len(facets), figure["facets"] != "metric"), facets, strict=True)
        ):
            own = [p for p in points if _facet(figure, p) in (facet, None)]
            paint_panel(ax, figure, own, places, series, names)
            zero = 0.0 if figure["difference"] else figure["chance"]
            if zero is not None:
                line = ax.axvline if figure["kind"] == "dots" else ax.axhline
                named = CHANCE if figure["series"] is not None and not figure["difference"] else None
                line(zero, color=SOFT, linewidth=1, linestyle=(0, (3, 3)), label=named)
            if facet is not None:
                ax.set_title(label(_facet_title(figure, facet, names), 40))
            ax.set_label(str(i))
        across, up = called(figure["x"], names), _quantity(figure)
        if figure["kind"] == "dots":
            across, up = up, ""
        canvas.supxlabel(across, fontsize=10)
        if up:
            canvas.supylabel(up, fontsize=10)
        if figure["series"] is not None:
            shared_legend(canvas)

    lines = 1 if figure["kind"] == "line" else len(places) * max(1, 0.6 * len(series))
    height = grid_height(len(facets)) if figure["kind"] == "line" else 1.0 + _rows(len(facets)) * (0.5 + 0.26 * lines)
    height += 0.2 * max(0, legend_rows(len(series) + (figure["chance"] is not None)) - 1)
    return draw(f"{study}-{figure['name']}", _alt(figure, names), height, paint)


def _lines(
    ax: Axes, figure: Mapping[str, Any], own: Sequence[Point], places: list[Any], series: list[Any], names: Any
) -> None:
    """A line per series over the values of x, which stand at equal distances; a point without an x is a level line."""
    for i, one in enumerate(series):
        mine = [p for p in own if _series(figure, p) == one]
        style = {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[i % len(DASHES)]}
        name = None if one is None else label(heading(figure["series"], one, names))
        level = [p for p in mine if one in figure["level"] or p["at"].get(figure["x"]) is None]
        for p in level[:1]:
            ax.plot([0, len(places) - 1], [p["mean"]] * 2, label=name, **style)
        mine = sorted((p for p in mine if p not in level), key=lambda p: places.index(p["at"][figure["x"]]))
        if mine:
            x = [places.index(p["at"][figure["x"]]) for p in mine]
            ax.plot(x, [p["mean"] for p in mine], marker=MARKERS[i % len(MARKERS)], markersize=5, label=name, **style)
            if all(p["ci_low"] is not None for p in mine):
                low, high = [p["ci_low"] for p in mine], [p["ci_high"] for p in mine]
                ax.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)
    words = [text(x) for x in places]
    ax.set_xticks(range(len(words)), words)
    if sum(map(len, words)) > ROOM:
        ax.tick_params("x", labelsize=8)


def _dots(
    ax: Axes, figure: Mapping[str, Any], own: Sequence[Point], places: list[Any], series: list[Any], names: Any
) -> None:
    """A dot with its interval per value of x, down the panel; the series side by side."""
    for i, one in enumerate(series):
        color = PALETTE[i % len(PALETTE)] if figure["series"] else INK
        shift = 0.0 if len(series) == 1 else 0.36 * (i / (len(series) - 1) - 0.5)
        name = None if one is None else label(heading(figure["series"], one, names))
        for p in (p for p in own if _series(figure, p) == one):
            y = places.index(p["at"].get(figure["x"])) + shift
            if p["ci_low"] is not None:
                ax.plot([p["ci_low"], p["ci_high"]], [y, y], color=color, linewidth=1.8, solid_capstyle="butt")
            ax.plot(p["mean"], y, MARKERS[i % len(MARKERS)], color=color, markersize=6, label=name)
            name = None
    ax.set_yticks(range(len(places)), [label(heading(figure["x"], x, names)) for x in places])
    ax.set_ylim(len(places) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")


def _facet(figure: Mapping[str, Any], point: Point) -> Any:
    by = figure["facets"]
    return None if by is None else point["metric"] if by == "metric" else point["at"].get(by)


def _series(figure: Mapping[str, Any], point: Point) -> Any:
    return None if figure["series"] is None else point["at"].get(figure["series"])


def _facet_title(figure: Mapping[str, Any], facet: Any, names: Mapping[str, str]) -> str:
    return metric_words(facet) if figure["facets"] == "metric" else heading(figure["facets"], facet, names)


def _quantity(figure: Mapping[str, Any]) -> str:
    """What the axis of values shows."""
    if figure["facets"] == "metric":
        return ""
    word = metric_words(figure["metric"])
    if figure["difference"]:
        return f"difference in {word} to {', '.join(str(v) for v in figure['difference'].values())}"
    unexplained = figure["chance"] is not None and figure["series"] is None  # without a legend
    return f"{word} (dashed: chance)" if unexplained else word


def _alt(figure: Mapping[str, Any], names: Mapping[str, str]) -> str:
    what = "several metrics" if figure["facets"] == "metric" else _quantity(figure)
    return f"{figure['title']}: {what} by {called(figure['x'], names)}; the numbers are in the summary file."


def _rows(count: int) -> int:
    return -(-count // 2) if count > 1 else 1
