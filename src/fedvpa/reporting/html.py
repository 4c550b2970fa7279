"""The report: one self-contained HTML page with the numbers, the figures, and in words what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markupsafe import Markup

from fedvpa.config import MethodConfig
from fedvpa.evaluation.result_files import write_text
from fedvpa.evaluation.results import Row
from fedvpa.reporting import plots, plots_latent, tables, words
from fedvpa.reporting.pages import template
from fedvpa.reporting.tables import Results

Metrics = Sequence[Mapping[str, Any]]


class Picture(NamedTuple):
    """A figure of the page: its anchor, title, SVG, how to read it, and what it shows here."""

    name: str
    title: str
    svg: Markup
    how: str
    here: str


def write_report(folder: str | Path, results: Results, metrics: Metrics, config_yaml: str) -> Path:
    """Writes ``report.html`` of a `train` or `compare` run.

    Args:
        folder: the run folder, which exists.
        results: as `fedvpa.evaluation.result_files.read_results` returns them.
        metrics: as `fedvpa.evaluation.result_files.read_metrics` returns them; may be empty.
        config_yaml: the resolved configuration.

    Returns:
        The page's path.

    Raises:
        UserError: the page cannot be written.
    """
    return write_text(Path(folder) / "report.html", render_report(results, metrics, config_yaml))


def render_report(results: Results, metrics: Metrics, config_yaml: str) -> str:
    """The page as text; see `write_report`."""
    config = yaml.safe_load(config_yaml) or {}
    size = tables.main_context_size(results, (config.get("federation") or {}).get("context_pairs"))
    population = tables.main_population(results)
    rows = tables.main_rows(results, size)
    columns = tables.filled_columns([*tables.ACCURACY, *tables.LATENT, *tables.COST], rows)
    group_names, group_rows = words.group_rows(results, size)
    return template("report.html.j2").render(
        title=(config.get("data") or {}).get("name") or "run",
        subtitle=words.subtitle(results),
        headline=words.headline(results, size),
        leaking=(config.get("evaluation") or {}).get("protocol") == "pair-leak",
        notes=results["notes"],
        population=population,
        context_size=size,
        heads=[tables.HEADS[c].replace("-\n", "").replace("\n", " ") for c in columns],
        rows=[(r["method"], [tables.cell(r, c) for c in columns]) for r in rows],
        best=tables.best_method(rows, population),
        seeds=len({r["seed"] for r in results["rows"]}),
        paired=tables.paired_rows(results, population, size),
        group_names=group_names,
        group_rows=group_rows,
        switching=words.switching_rows(results),
        pictures=_pictures(results, metrics, config, size),
        definitions=_definitions(),
        data=results["data"],
        environment=results["environment"],
        config=config_yaml.strip(),
    )


_DEFINED = (
    "accuracy",
    "conflict_accuracy",
    "worst_group_accuracy",
    "switch_gap",
    "flip_rate",
    "active_units",
    "cluster_purity",
    "kl",
    "log_loss",
    "ece",
    "bytes_up",
    "bytes_down",
    "seconds_per_round",
    "epsilon",
)


def _definitions() -> list[tuple[str, str]]:
    return [(name.replace("_", " "), Row.model_fields[name].description or "") for name in _DEFINED]


def _pictures(results: Results, metrics: Metrics, config: Mapping[str, Any], size: int | None) -> list[Picture]:
    """The figures for which there is data."""
    return [
        *_comparison(results, size),
        *_curve(results),
        *_training(results, metrics),
        *_latent(results, size),
        *_losses(results, metrics, config),
        *_cost(results, metrics, size),
    ]


def _comparison(results: Results, size: int | None) -> list[Picture]:
    if len(tables.methods_of(results)) < 2:
        return []
    here = words.comparison_caption(results, size)
    how = (
        "Each dot is a method's accuracy, the line its 95 % interval. Intervals of two methods may overlap "
        "although their paired difference is clear: the table of differences decides."
    )
    svg = plots.comparison(results, size, f"Accuracy per method. {here}")
    return [Picture("comparison", "Who predicts best", Markup(svg), how, here)]


def _curve(results: Results) -> list[Picture]:
    if len(tables.context_sizes_of(results)) < 2:
        return []
    population = tables.main_population(results)
    here = words.curve_caption(results, population)
    how = (
        "How much a method learns about a user from a few answers. Bands are 95 % intervals; lines without "
        "marks belong to methods that take no context. The steps on the axis are not to scale."
    )
    svg = plots.context_curve(results, population, f"Accuracy against the number of context pairs. {here}")
    return [Picture("curve", "How many answers a user must give", Markup(svg), how, here)]


def _training(results: Results, metrics: Metrics) -> list[Picture]:
    if not any(m["validation"] is not None for m in metrics):
        return []
    here = words.rounds_caption(metrics)
    how = (
        "Accuracy on validation users, who are never trained on. Lines are means over seeds, bands reach from"
        " the lowest to the highest seed. Lines of groups that part mean that the model serves one group at "
        "the other's expense."
    )
    svg = plots.accuracy_by_round(metrics, tables.methods_of(results), f"Validation accuracy against rounds. {here}")
    return [Picture("rounds", "Accuracy in the course of training", Markup(svg), how, here)]


def _latent(results: Results, size: int | None) -> list[Picture]:
    out = []
    latents = {m: d for m, d in results["diagnostics"].items() if d.get("latents") and d["latents"]["ids"]}
    if latents:
        here = words.latents_caption(latents, results, size)
        how = (
            "Each mark is a user's posterior mean, projected on the two directions of largest variance of its own"
            " method (first seed). Colour and shape show the true group where it is known; training never sees "
            "it. Users of a group that lie together, apart from others, are what a useful latent looks like."
        )
        svg = plots_latent.latent_map(latents, f"Map of the users' latents. {here}")
        out.append(Picture("latents", "The map of users", Markup(svg), how, here))
    priors = {m: d for m, d in results["diagnostics"].items() if d.get("prior_weights") and d["prior_weights"]["ids"]}
    if priors:
        here = words.prior_caption(priors)
        how = (
            "Row by row, whose posteriors make up a client's prior (first seed). Clients are sorted by true group"
            " where it is known, lines mark the groups' borders. A client is no peer of itself. Dark blocks on the "
            "diagonal mean that clients found their peers."
        )
        svg = plots_latent.prior_weights(priors, f"Prior weights, client by client. {here}")
        out.append(Picture("prior", "Whom a client's prior listens to", Markup(svg), how, here))
    return out


def _losses(results: Results, metrics: Metrics, config: Mapping[str, Any]) -> list[Picture]:
    method_config = {**MethodConfig.model_validate({}).model_dump(), **(config.get("method") or {})}
    weights = {
        "reconstruction": 1.0,
        "kl": float(method_config["beta"]),
        "ortho": float(method_config["lambda_"]),
        "mixture": float(method_config["mixture_loss"]),
        "cluster": float(method_config["cluster_loss"]),
    }
    with_terms = {m["method"] for m in metrics if any(m[t] for t in ("kl", "ortho", "mixture", "cluster"))}
    methods = [m for m in tables.methods_of(results) if m in with_terms]
    if not methods:
        return []
    here = words.losses_caption(metrics, methods, weights)
    how = (
        "What the loss consists of: the absolute value of each term times its weight, as a share of their sum over "
        "all seeds. Terms that appear later are switched on after the warm-up. Methods whose loss has one term are "
        "left out."
    )
    svg = plots.loss_shares(metrics, methods, weights, f"Shares of the loss against rounds. {here}")
    return [Picture("losses", "What the loss consists of", Markup(svg), how, here)]


def _cost(results: Results, metrics: Metrics, size: int | None) -> list[Picture]:
    rows = tables.main_rows(results, size)
    if all(r["bytes_up"] is None and r["seconds_per_round"] is None for r in rows):
        return []
    here = words.cost_caption(results, rows, metrics)
    how = (
        "Bytes that one sampled client sends and receives in a round, and the wall-clock seconds of a round "
        "for all of them, evaluation excluded. Methods without rounds are left out."
    )
    svg = plots.cost(rows, f"Cost per round. {here}")
    return [Picture("cost", "What a round costs", Markup(svg), how, here)]
