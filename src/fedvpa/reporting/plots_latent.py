"""Figures of what a method has learned about its users: the latent map and the prior weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from fedvpa.reporting.plots import INK, MARKERS, PALETTE, SOFT, WIDTH, draw, label

Diagnostics = Mapping[str, Any]


def latent_map(diagnostics: Mapping[str, Diagnostics], alt: str) -> str:
    """Users' posterior means on their first two principal components, a panel per method.

    Colour and shape give the true group where it is known, a filled mark a seen user and a hollow one an unseen user;
    stars with numbers are the prototypes.

    Args:
        diagnostics: per method, all with ``latents``.
        alt: text for readers who cannot see it.
    """
    names = next((d["group_names"] for d in diagnostics.values() if d["group_names"]), None) or []
    columns = min(2, len(diagnostics))
    lines = math.ceil(len(diagnostics) / columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax, (method, found) in zip(grid, diagnostics.items(), strict=False):
            _map(ax, found)
            ax.set_title(label(method))
        for ax in grid[len(diagnostics) :]:
            ax.set_axis_off()
        _map_legend(figure, grid[0], names, diagnostics)

    return draw("latents", alt, 0.8 + lines * (WIDTH / columns) * (0.95 if columns > 1 else 0.7), paint)


def _map(ax: Axes, found: Diagnostics) -> None:
    latents = found["latents"]
    means = np.asarray(latents["means"], dtype=np.float64)
    points, axes, shares = principal_plane(means)
    for group, population in sorted(set(zip(latents["groups"], latents["populations"], strict=True)), key=str):
        pairs = zip(latents["groups"], latents["populations"], strict=True)
        members = [i for i, pair in enumerate(pairs) if pair == (group, population)]
        color = SOFT if group is None else PALETTE[group % len(PALETTE)]
        marker = MARKERS[0 if group is None else group % len(MARKERS)]
        face = color if population == "seen" else "white"
        ax.plot(*points[members].T, marker, color=color, markerfacecolor=face, markersize=5, alpha=0.85, linestyle="")
    if found["prototypes"]:
        for k, point in enumerate((np.asarray(found["prototypes"]) - means.mean(0)) @ axes.T):
            ax.plot(*point, marker="*", markersize=15, color="#F0E442", markeredgecolor=INK, linestyle="")
            ax.annotate(str(k), point, xytext=(7, 5), textcoords="offset points", fontsize=9, fontweight="bold")
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel(f"component 1 ({shares[0]:.0%})")
    ax.set_ylabel(f"component 2 ({shares[1]:.0%})")
    ax.margins(0.1)


def principal_plane(means: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Principal components of (n, d) means.

    Returns:
        (n, 2) coordinates, (2, d) axes and their (2,) shares of the variance; a direction that does not exist (one
        user, one dimension, no variance) is zero.
    """
    points, axes, shares = np.zeros((len(means), 2)), np.zeros((2, means.shape[1])), np.zeros(2)
    if len(means) > 1 and means.var(0).sum() > 0:
        count = min(2, *means.shape)
        pca = PCA(count, svd_solver="full").fit(means)
        points[:, :count], axes[:count] = pca.transform(means), pca.components_
        shares[:count] = pca.explained_variance_ratio_
    return points, axes, shares


def _map_legend(figure: Figure, ax: Axes, names: Sequence[str], diagnostics: Mapping[str, Diagnostics]) -> None:
    handles = []
    for i, name in enumerate(names):
        style: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "color": PALETTE[i % len(PALETTE)]}
        handles += ax.plot([], [], linestyle="", label=label(name), **style)
    populations = {p for d in diagnostics.values() for p in d["latents"]["populations"]}
    for population, face in (("seen", SOFT), ("unseen", "white")):
        if population in populations:
            handles += ax.plot([], [], "o", color=SOFT, markerfacecolor=face, label=f"{population} user")
    if any(d["prototypes"] for d in diagnostics.values()):
        star: dict[str, Any] = {"markersize": 12, "color": "#F0E442", "markeredgecolor": INK}
        handles += ax.plot([], [], "*", label="prototype", **star)
    figure.legend(handles=handles, loc="outside upper left", ncols=4, columnspacing=1.2, handletextpad=0.3)


def prior_weights(diagnostics: Mapping[str, Diagnostics], alt: str) -> str:
    """Each client's prior weights as a picture, clients sorted by true group, with the groups' borders.

    Args:
        diagnostics: per method, all with ``prior_weights``.
        alt: text for readers who cannot see it.
    """
    columns = min(2, len(diagnostics))
    lines = math.ceil(len(diagnostics) / columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax, (method, found) in zip(grid, diagnostics.items(), strict=False):
            _weights(figure, ax, found)
            ax.set_title(label(method))
        for ax in grid[len(diagnostics) :]:
            ax.set_axis_off()

    return draw("prior", alt, 0.3 + lines * (3.1 if columns > 1 else 4.4), paint)


def _weights(figure: Figure, ax: Axes, found: Diagnostics) -> None:
    weights = np.asarray(found["prior_weights"]["weights"], dtype=np.float64)
    order, borders = sort_by_group(found["prior_weights"]["groups"])
    between_peers = weights.shape[0] == weights.shape[1]
    weights = weights[np.ix_(order, order)] if between_peers else weights[order]
    top = max(float(np.quantile(weights, 0.995)), 2 / weights.shape[1])  # even weights are half dark at most
    image = ax.imshow(weights, cmap="Blues", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=ax, label="weight", shrink=0.85)
    names, groups = found["group_names"] or [], found["prior_weights"]["groups"]
    edges = [0, *borders, len(order)]
    for edge in borders:
        ax.axhline(edge - 0.5, color=INK, linewidth=1)
        if between_peers:
            ax.axvline(edge - 0.5, color=INK, linewidth=1)
    ax.grid(visible=False)
    middles = [(a + b - 1) / 2 for a, b in pairwise(edges)]
    known = [groups[order[a]] for a in edges[:-1]]
    if names and all(g is not None for g in known):
        ax.set_yticks(middles, [label(names[g], 16) for g in known])
        if between_peers:
            ax.set_xticks(
                middles, [label(names[g], 16) for g in known], rotation=30, ha="right", rotation_mode="anchor"
            )
    ax.set_xlabel("peer" if between_peers else "component of the prior")
    ax.set_ylabel("client")


def sort_by_group(groups: Sequence[int | None]) -> tuple[list[int], list[int]]:
    """The order of clients by group (unknown ones last), and the positions where a new group begins."""
    order = sorted(range(len(groups)), key=lambda i: (groups[i] is None, groups[i] or 0, i))
    borders = [k for k in range(1, len(order)) if groups[order[k]] != groups[order[k - 1]]]
    return order, borders
