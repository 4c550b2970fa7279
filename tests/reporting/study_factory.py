"""A made-up study summary, to draw tables, figures and the page from."""

from __future__ import annotations

from typing import Any

from fedvpa.evaluation.study_schema import Study

SPEC: dict[str, Any] = {
    "name": "made-up",
    "title": "Made up, in parts",
    "claim": "Something holds.",
    "seeds": 2,
    "names": {"method.beta": "beta"},
    "runs": [{"config": "x.yaml", "methods": ["fedvpl"], "grid": {"method.beta": [0.1, 1.0]}}],
    "tables": [
        {"title": "By beta", "rows": ["method"], "columns": ["method.beta"]},
        {"title": "Many", "metric": ["accuracy", "kl"], "rows": ["method"], "where": {"method.beta": 0.1}},
        {"title": "Differences", "rows": ["method"], "columns": ["method.beta"], "difference": {"method": "fedvpa-gp"}},
    ],
    "figures": [
        {"name": "lines", "title": "Lines", "x": "method.beta", "series": "method", "chance": 0.5, "level": ["fedbt"]},
        {"name": "panels", "title": "Panels", "x": "method.beta", "series": "method", "facets": "metric",
         "metrics": ["accuracy", "kl", "active_units"]},
        {"name": "dots", "title": "Dots", "kind": "dots", "x": "method", "facets": "method.beta"},
    ],
}  # fmt: skip


def study(**changes: Any) -> Study:
    return Study.model_validate({**SPEC, **changes})


def point(mean: float, metric: str = "accuracy", p: float | None = None, **at: Any) -> dict[str, Any]:
    at = {k.replace("__", "."): v for k, v in at.items()}
    ends = {"ci_low": mean - 0.02, "ci_high": mean + 0.02}
    return {"at": at, "metric": metric, "mean": mean, **ends, "seeds": 2, "p_holm": p}


def check(verdict: str, outcomes: list[str], **changes: Any) -> dict[str, Any]:
    tests = [
        {"setting": {}, "minus": {"method": "b"}, "mean": 0.01 * i, "ci_low": 0.01 * i - 0.005,
         "ci_high": 0.01 * i + 0.005, "seeds": 5, "p_holm": 0.01, "outcome": o}
        for i, o in enumerate(outcomes, start=1)
    ]  # fmt: skip
    body = {
        "says": f"claim {verdict}",
        "paper": True,
        "metric": "accuracy",
        "minus": {"method": "b"},
        "at_least": 0.0,
        "at_most": None,
        "burden": "shown",
    }
    return {**body, "tests": tests, "missing": 0, "verdict": verdict, **changes}


def summary(checks: list[dict[str, Any]], quick: bool = False) -> dict[str, Any]:
    spec = study()
    by_beta = [point(0.7 + 0.1 * b, method=m, method__beta=b) for m in ("fedvpl", "fedvpa-gp") for b in (1.0, 0.1)]
    by_beta.append(point(0.5, method="fedbt", method__beta=0.1))
    several = [point(0.8, method="fedvpl"), point(12.34, "kl", method="fedvpl"), point(0.5, method="fedbt")]
    less = [
        point(-0.03, p=0.01, method="fedvpl", method__beta=0.1),
        point(0.01, p=0.4, method="fedvpl", method__beta=1.0),
    ]
    panels = [{**p, "metric": m} for m in ("accuracy", "kl", "active_units") for p in by_beta]
    tables = [
        {**t.model_dump(mode="json"), "points": p} for t, p in zip(spec.tables, (by_beta, several, less), strict=True)
    ]
    figures = [
        {**f.model_dump(mode="json"), "points": p}
        for f, p in zip(spec.figures, (by_beta, panels, by_beta), strict=True)
    ]
    return {
        "study": spec.model_dump(mode="json", include={"name", "title", "claim", "names"}),
        "quick": quick,
        "cells": {"planned": 10, "finished": 9, "failed": ["x, fedvpl, seed 0"]},
        "provenance": {
            "command": "fedvpa study x --out DIR", "seeds": [0, 1], "commits": ["abc"],
            "hardware": ["A CPU"], "cores": ["2"], "platform": ["Linux"], "dates": ["2026-01-01", "2026-01-03"],
            "core_seconds": 7200,
            "versions": {"torch": ["2.13.0"]},
        },
        "notes": ["Mind the gap."],
        "tables": tables,
        "figures": figures,
        "checks": checks,
    }  # fmt: skip
