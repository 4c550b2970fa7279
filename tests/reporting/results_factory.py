"""Plausible results of a made-up comparison, to develop and test tables, figures and the page against."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedvpa.evaluation.compare import PairScores, summarise

GROUPS = ["longer", "shorter", "asks back", "asks nothing"]
SIZES = (0, 1, 2, 4, 8, 16)
# accuracy with many context pairs, whether it has a latent, how much of the latent is in use
METHODS = {
    "fedvpa-gp": (0.88, True, 1.0),
    "fedvpl": (0.81, True, 0.8),
    "fedvpl+ortho": (0.52, True, 0.0),
    "fedbt": (0.505, False, 0.0),
    "oracle": (0.915, False, 0.0),
}
CONFIG = (
    "seed: 0\ndata:\n  name: hh-attributes\nmethod:\n  beta: 0.01\n  lambda_: 1.0\nfederation:\n  context_pairs: 8\n"
)


def make_rows(
    methods: tuple[str, ...] = tuple(METHODS), seeds: int = 3, groups: list[str] = GROUPS, pairs: int = 200
) -> tuple[list[dict[str, Any]], list[PairScores]]:
    """Rows and pair scores; ``groups`` may be empty."""
    rows, scores = [], []
    for seed in range(seeds):
        for method in methods:
            top, latent, use = METHODS[method]
            for population in ("seen", "unseen"):
                for size in SIZES if latent else (None,):
                    rng = np.random.default_rng([seed, list(METHODS).index(method), size or 0])
                    p = top if size is None else 0.5 + (top - 0.5) * (1 - np.exp(-size / 2.5))
                    for inference in ("amortised", "mixture") if latent else ("none",):
                        weight = np.full(pairs, 1 / pairs)
                        correct = weight * (rng.random((10, pairs)) < p - 0.02 * (inference == "amortised")).mean(0)
                        scores.append(PairScores(weight, correct))
                        rows.append(_row(method, seed, population, inference, size, scores[-1].accuracy, use, groups))
    return rows, scores


def _row(
    method: str,
    seed: int,
    population: str,
    inference: str,
    size: int | None,
    accuracy: float,
    use: float,
    groups: list[str],
) -> dict[str, Any]:
    latent = inference != "none"
    group = {g: accuracy + 0.02 * (i - (len(groups) - 1) / 2) for i, g in enumerate(groups)}
    return {
        "method": method,
        "seed": seed,
        "population": population,
        "inference": inference,
        "default": inference in ("mixture", "none"),
        "context_size": size,
        "accuracy": accuracy,
        "worst_group_accuracy": min(group.values()) if groups else None,
        "log_loss": 0.9 - 0.6 * accuracy,
        "ece": 0.04,
        "switch_gap": use * 2 * (accuracy - 0.5) if latent else None,
        "flip_rate": 0.95 * use if latent else None,
        "active_units": use * 0.6 if latent else None,
        "cluster_purity": (1.0 if use == 1 else 0.6) if latent and groups else None,
        "kl": 6.0 * use + 0.01 if latent else None,
        "bytes_up": 1_233_456.0 if method != "oracle" else None,
        "bytes_down": 1_300_000.0 if method != "oracle" else None,
        "seconds_per_round": 0.31 if method != "oracle" else None,
        "conflict_accuracy": accuracy - 0.03 if groups else None,
        "group_accuracy": group if groups else None,
        "kl_standard": 7.0 * use if latent else None,
        "mean_norm": 4.0 * use if latent else None,
        "active_units_at_init": 0.1 if latent else None,
        "flip_rate_at_init": 0.5 if latent else None,
    }


def make_diagnostics(method: str, groups: list[str] = GROUPS, users: int = 48, dim: int = 8) -> dict[str, Any]:
    """Latents, prototypes and prior weights; nothing for methods without a latent."""
    if not METHODS[method][1]:
        return {}
    rng, use = np.random.default_rng(1), METHODS[method][2]
    count = max(1, len(groups))
    group = np.arange(users) % count
    centres = 5 * np.linalg.qr(rng.normal(size=(dim, dim)))[0][:count]
    means = use * centres[group] + rng.normal(size=(users, dim)) * (0.9 if use else 0.01)
    training = [i for i in range(users) if i < users // 2]
    weights = np.array([[(4.0 if group[i] == group[j] else 1.0) * (i != j) for j in training] for i in training])
    return {
        "latents": {
            "ids": [f"client-{i}" for i in range(users)],
            "groups": [int(g) if groups else None for g in group],
            "populations": ["seen" if i < users // 2 else "unseen" for i in range(users)],
            "means": means.tolist(),
            "log_vars": np.full((users, dim), -1.0).tolist(),
        },
        "prototypes": centres.tolist() if method == "fedvpa-gp" else None,
        "prior_weights": {
            "ids": [f"client-{i}" for i in training],
            "groups": [int(group[i]) if groups else None for i in training],
            "weights": (weights / weights.sum(1, keepdims=True)).tolist(),
        }
        if method == "fedvpa-gp"
        else None,
        "group_names": groups or None,
    }


def make_results(
    methods: tuple[str, ...] = tuple(METHODS), seeds: int = 3, groups: list[str] = GROUPS, resamples: int = 300
) -> dict[str, Any]:
    """The content of a ``results.json``."""
    rows, scores = make_rows(methods, seeds, groups)
    return {
        "rows": rows,
        "summary": summarise(rows, scores, resamples=resamples),
        "diagnostics": {m: make_diagnostics(m, groups) for m in methods},
        "switching": [],
        "notes": ["Labels are made by rules, not by people."],
        "data": {"pairs": 2300, "ties dropped": 41, "seen": 40, "unseen": 40},
        "environment": {"torch": "2.13.0", "device": "cpu"},
    }


def make_metrics(
    methods: tuple[str, ...] = tuple(METHODS), seeds: int = 3, groups: list[str] = GROUPS, rounds: int = 40
) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``."""
    lines = []
    for method in methods:
        top, latent, use = METHODS[method]
        if method == "oracle":
            continue
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            for t in range(1, rounds + 1):
                accuracy = 0.5 + (top - 0.5) * (1 - np.exp(-t / 12)) + rng.normal() * 0.006
                late = latent and t > rounds // 4
                validation = {
                    "accuracy": accuracy,
                    "worst_group_accuracy": accuracy - 0.03 if groups else None,
                    "group_accuracy": {g: accuracy + 0.02 * (i - 1.5) for i, g in enumerate(groups)}
                    if groups
                    else None,
                }
                parts = {
                    "reconstruction": 1.2 - accuracy,
                    "kl": 6.0 * use * min(1, t / 20) if latent else 0.0,
                    "ortho": 0.05 if late and "ortho" in method + "+ortho" * (method == "fedvpa-gp") else 0.0,
                    "mixture": 0.3 if late and method == "fedvpa-gp" else 0.0,
                }
                lines.append(
                    {
                        "method": method,
                        "seed": seed,
                        "round": t,
                        "loss": sum(parts.values()),
                        **parts,
                        "bytes_up": 1_233_456.0,
                        "bytes_down": 1_300_000.0,
                        "seconds": 0.31 + 0.02 * rng.random(),
                        "mean_norm": 4.0 * use if latent else None,
                        "effective_components": 12.0 if method == "fedvpa-gp" else None,
                        "validation": validation if t % 5 == 0 else None,
                    }
                )
    return lines
