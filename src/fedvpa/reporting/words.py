"""What the numbers say, in sentences: the report's headline and the captions of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedvpa.reporting.plots import TERMS, term_shares
from fedvpa.reporting.plots_latent import Diagnostics, principal_plane
from fedvpa.reporting.tables import (
    NOT_COMPETING,
    Results,
    curve_rows,
    default_entry,
    main_population,
    main_rows,
    methods_of,
    metric,
    paired_rows,
    seconds,
)

COLLAPSED_UNITS, COLLAPSED_GAP = 0.05, 0.02
"""Below either, a latent counts as collapsed: share of active units, and switch gap."""

Rows = Sequence[Mapping[str, Any]]


def headline(results: Results, context_size: int | None) -> list[str]:
    """The report's first paragraph: who leads and by how much, what the ceiling is, whether a latent has collapsed."""
    rows, population = main_rows(results, context_size), main_population(results)
    ranked = ranking(rows, population)
    if not ranked:
        return []
    first = ranked[0]
    users = "users who never took part in training" if population == "unseen" else "users who took part in training"
    given = "" if not first["context_size"] else f", given {first['context_size']} labelled pairs of each"
    score = score_text(first[population], first[f"{population}_low"], first[f"{population}_high"])
    verb = "leads: it predicts" if len(ranked) > 1 else "predicts"
    sentences = [f"{first['method']} {verb} {score} of the choices of {users}{given}; guessing gets 0.5."]
    sentences += _margin(results, ranked, population, context_size)
    sentences += _ceiling(rows, first, population)
    sentences += _conflict(ranked)
    sentences += _collapse(rows)
    if len({r["seed"] for r in results["rows"]}) == 1:
        sentences.append("This is one seed: the interval covers the choice of test pairs, not the luck of the draw.")
    return sentences


def ranking(rows: Rows, population: str) -> list[Mapping[str, Any]]:
    """Rows of the main table, best first; methods that do not compete only where there is no other."""
    scored = [r for r in rows if r[population] is not None]
    competing = [r for r in scored if r["method"] not in NOT_COMPETING] or scored
    return sorted(competing, key=lambda r: -r[population])


def score_text(mean: float, low: float | None, high: float | None) -> str:
    """``0.861 (95 % interval 0.849 to 0.872)``."""
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} (95 % interval {low:.3f} to {high:.3f})"


def enumerate_words(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _margin(results: Results, ranked: Rows, population: str, context_size: int | None) -> list[str]:
    if len(ranked) < 2:
        return []
    first, second = ranked[0], ranked[1]
    paired = {r["method"]: r for r in paired_rows(results, population, context_size)}
    reference = next(iter(paired.values()))["reference"] if paired else None
    rival = second["method"] if first["method"] == reference else reference
    found = paired.get(second["method"] if first["method"] == reference else first["method"])
    follows = f"{second['method']} follows with {second[population]:.3f}"
    if found is None:
        return [f"{follows}."]
    low, high = sorted((abs(found["ci_low"]), abs(found["ci_high"])))
    p = f"p = {found['p_holm']:.3f} after Holm's correction"
    if found["ci_low"] > 0 or found["ci_high"] < 0:
        interval = f"{low:.3f} to {high:.3f} on the same seeds and pairs"
        leads = "the lead over" if (found["difference"] > 0) == (found["method"] == first["method"]) else "the gap to"
        text = f"{leads} {rival} is {abs(found['difference']):.3f} ({interval}, {p})"
    else:
        text = f"the difference to {rival}, {abs(found['difference']):.3f}, is within what chance explains ({p})"
    return [f"{follows}; {text}."]


def _ceiling(rows: Rows, first: Mapping[str, Any], population: str) -> list[str]:
    oracle = next((r for r in rows if r["method"] == "oracle" and r[population] is not None), None)
    if oracle is None or first is oracle:
        return []
    gap = oracle[population] - first[population]
    where = f"{first['method']} is {abs(gap):.3f} {'under' if gap >= 0 else 'above'} it"
    return [f"The oracle, which knows each user's group, reaches {oracle[population]:.3f}; {where}."]


def _conflict(ranked: Rows) -> list[str]:
    found = [r for r in ranked if r["conflict"] is not None]
    if not found:
        return []
    text = f"On the pairs on which the groups disagree, {found[0]['method']} gets {found[0]['conflict']:.3f}"
    plain = [r for r in found[1:] if r["inference"] == "none"]
    if plain:
        text += " and, without a latent, " + enumerate_words([f"{r['method']} {r['conflict']:.3f}" for r in plain])
    return [f"{text}."]


def collapsed(row: Mapping[str, Any]) -> bool | None:
    """Whether a method's latent says nothing about the user; None where it has none, or nothing was measured."""
    units, gap = row["active_units"], row["switch_gap"]
    if row["inference"] == "none" or (units is None and gap is None):
        return None
    return (units is not None and units < COLLAPSED_UNITS) or (gap is not None and gap < COLLAPSED_GAP)


def _collapse(rows: Rows) -> list[str]:
    def named(chosen: Rows) -> str:
        shown = [
            f"{r['method']} (switch gap {r['switch_gap']:.3f})"
            if r["switch_gap"] is not None
            else f"{r['method']} (active units {r['active_units']:.2f})"
            for r in chosen
        ]
        return enumerate_words(shown)

    dead, alive = [r for r in rows if collapsed(r)], [r for r in rows if collapsed(r) is False]
    sentences = []
    if alive:
        sentences.append(f"The latent is in use in {named(alive)}.")
    if dead:
        sentences.append(f"It has collapsed in {named(dead)}: whose latent is used makes no difference there.")
    return [s if alive else s.replace("It has", "The latent has", 1) for s in sentences]


def comparison_caption(results: Results, context_size: int | None) -> str:
    rows, population = main_rows(results, context_size), main_population(results)
    ranked = ranking(rows, population)
    text = f"Here the best, {ranked[0]['method']}, is at {ranked[0][population]:.3f}"
    if len(ranked) > 1:
        text += f" and the last, {ranked[-1]['method']}, at {ranked[-1][population]:.3f}"
    if ranked[0]["seen"] is not None and ranked[0]["unseen"] is not None:
        gap = ranked[0]["seen"] - ranked[0]["unseen"]
        same = "as good" if abs(gap) < 0.0005 else f"{abs(gap):.3f} {'better' if gap > 0 else 'worse'}"
        text += f"; for users seen in training {ranked[0]['method']} is {same}"
    return f"{text}."


def curve_caption(results: Results, population: str) -> str:
    rows = [r for r in curve_rows(results, population) if r["context_size"] is not None]
    competing = [r for r in rows if r["method"] not in NOT_COMPETING] or rows
    method = max(competing, key=lambda r: r["mean"])["method"]
    own = [r for r in competing if r["method"] == method]
    top = max(r["mean"] for r in own)
    enough = next(r for r in own if r["mean"] >= top - 0.01)
    start, end = own[0], own[-1]
    return (
        f"Here {method} goes from {start['mean']:.3f} with {start['context_size']} pairs to {end['mean']:.3f} with "
        f"{end['context_size']}; {enough['context_size']} pairs are enough to come within 0.01 of its best."
    )


def rounds_caption(metrics: Rows) -> str:
    last: dict[str, dict[int, Mapping[str, Any]]] = {}
    for m in metrics:
        if m["validation"] is not None:
            last.setdefault(m["method"], {})[m["seed"]] = m["validation"]
    ends = {method: float(np.mean([v["accuracy"] for v in seeds.values()])) for method, seeds in last.items()}
    best = max(ends, key=lambda method: ends[method])
    text = f"Here {best} ends at {ends[best]:.3f}"
    groups: dict[str, list[float]] = {}
    for v in last[best].values():
        for g, a in (v["group_accuracy"] or {}).items():
            if a is not None:
                groups.setdefault(g, []).append(a)
    if len(groups) > 1:
        means = {g: float(np.mean(a)) for g, a in groups.items()}
        low, high = min(means, key=lambda g: means[g]), max(means, key=lambda g: means[g])
        text += f"; its groups lie between {means[low]:.3f} ({low}) and {means[high]:.3f} ({high})"
    return f"{text}."


def latents_caption(diagnostics: Mapping[str, Diagnostics], results: Results, context_size: int | None) -> str:
    purity = {r["method"]: r["cluster_purity"] for r in main_rows(results, context_size)}
    parts = []
    for method, found in diagnostics.items():
        shares = principal_plane(np.asarray(found["latents"]["means"], dtype=np.float64))[2]
        part = f"in {method} the two directions hold {shares.sum():.0%} of the variance"
        if purity.get(method) is not None:
            part += f" (cluster purity {purity[method]:.2f})"
        parts.append(part)
    axes = " Panels have their own axes: compare shapes, not distances." if len(parts) > 1 else ""
    return f"Here, {enumerate_words(parts)}.{axes}"


def prior_caption(diagnostics: Mapping[str, Diagnostics]) -> str:
    parts = []
    for method, found in diagnostics.items():
        shares = same_group_share(found)
        if shares is not None:
            parts.append(
                f"in {method} {shares[0]:.0%} of the weight lies on peers of the same group (even: {shares[1]:.0%})"
            )
    return f"Here, {enumerate_words(parts)}." if parts else ""


def same_group_share(found: Diagnostics) -> tuple[float, float] | None:
    """Share of the prior weight on peers of the client's own group, and what even weights would give."""
    weights, groups = np.asarray(found["prior_weights"]["weights"]), found["prior_weights"]["groups"]
    if weights.shape[0] != weights.shape[1] or len(groups) < 2 or any(g is None for g in groups):
        return None
    same = np.equal.outer(np.asarray(groups), np.asarray(groups))
    others = ~np.eye(len(groups), dtype=bool)
    return float((weights * same * others).sum() / max((weights * others).sum(), 1e-12)), float(same[others].mean())


def losses_caption(metrics: Rows, methods: Sequence[str], weights: Mapping[str, float]) -> str:
    method = methods[0]
    _, shares = term_shares([m for m in metrics if m["method"] == method], weights)
    largest = sorted(zip(TERMS.values(), shares[:, -1], strict=True), key=lambda term: -term[1])
    parts = [f"{name} {share:.0%}" for name, share in largest if share >= 0.005]
    return f"Here, in the last round of {method}: {enumerate_words(parts)}." if parts else ""


def cost_caption(results: Results, rows: Rows, metrics: Rows) -> str:
    first = next((r for r in ranking(rows, main_population(results)) if r["bytes_up"] is not None), None)
    if first is None:
        return ""
    text = f"Here a client of {first['method']} sends {size_text(first['bytes_up'])}"
    if first["bytes_down"] is not None:
        text += f" and receives {size_text(first['bytes_down'])}"
    text += " in each round it takes part in"
    rounds = max((m["round"] for m in metrics if m["method"] == first["method"]), default=0)
    if rounds and first["seconds_per_round"] is not None:
        text += f"; its {rounds} rounds took {seconds(rounds * first['seconds_per_round'])} s, evaluation excluded"
    return f"{text}."


def size_text(count: float) -> str:
    """Bytes as B, KB or MB (powers of ten)."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} KB" if count >= 1e3 else f"{count:.0f} B"


def subtitle(results: Results) -> str:
    """Methods, seeds and users in one line."""
    seeds, methods = len({r["seed"] for r in results["rows"]}), methods_of(results)
    names = methods[0] if len(methods) == 1 else f"{len(methods)} methods"
    return f"{names} · {seeds} seed{'s' if seeds > 1 else ''}"


def group_rows(results: Results, context_size: int | None) -> tuple[list[str], list[list[str]]]:
    """Group names, and per method its name and each group's accuracy as text; empty without groups."""
    population = main_population(results)
    entries = {m: default_entry(results, m, population, context_size) for m in methods_of(results)}
    names = list(dict.fromkeys(k.split("/", 1)[1] for e in entries.values() if e for k in e["metrics"] if "/" in k))
    rows = []
    for method, entry in entries.items():
        values = [metric(entry, f"group_accuracy/{g}") for g in names]
        if any(v is not None for v in values):
            rows.append([method, *("–" if v is None else f"{v:.3f}" for v in values)])
    return names, rows


def switching_rows(results: Results) -> list[dict[str, str]]:
    """The switching test as text, a row per method: means over seeds of its numbers; all rows have the same keys."""
    tests = results["switching"]
    keys = list(dict.fromkeys(k for t in tests for k in t if k != "seed"))
    methods = dict.fromkeys(t.get("method") for t in tests)
    return [{k: _mean_text([t.get(k) for t in tests if t.get("method") == m]) for k in keys} for m in methods]


def _mean_text(values: Sequence[Any]) -> str:
    found = [v for v in values if v is not None]
    if not found:
        return "–"
    if all(isinstance(v, Mapping) for v in found):
        return ", ".join(f"{k} {_mean_text([v.get(k) for v in found])}" for k in found[0])
    if all(isinstance(v, (int, float)) for v in found):
        mean = float(np.mean(found))
        return f"{mean:.0f}" if all(isinstance(v, int) for v in found) else f"{mean:.3f}"
    return ", ".join(dict.fromkeys(str(v) for v in found))
