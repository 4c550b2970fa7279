"""A study's tables and checks as text: Markdown for the page, the same cells for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedvpa.evaluation.claims import verdict
from fedvpa.reporting.tables import LATENT

VERDICTS = {
    "holds": "holds",
    "unrefuted": "not refuted",
    "partly": "holds only partly",
    "not": "does not hold",
    "open": "is neither shown nor refuted",
    "untested": "is not yet tested",
}


FEW = 4
"""As many rivals are named that a claim does not pass against."""
_WORDS = {
    "worst_group_accuracy": "worst group's accuracy",
    "conflict_accuracy": "accuracy on conflicting pairs",
    "kl": "KL to the prior (nats)",
    "kl_standard": "KL to N(0, I) (nats)",
    "ece": "calibration error",
    "same_group_weight": "prior weight on the own group",
    "effective_components": "effective prior components",
    "ari": "adjusted Rand index",
}


def metric_words(metric: str) -> str:
    """A metric's name in words."""
    name, _, group = metric.partition("/")
    return f"accuracy of {group} users" if group else _WORDS.get(name, name.replace("_", " "))


def grid(table: Mapping[str, Any], names: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Head and body of a table from its points, as text.

    Args:
        table: an entry of ``tables`` of a summary file.
        names: how dimensions are called.
    """
    rows, columns, points = table["rows"], table["columns"], table["points"]
    several = isinstance(table["metric"], list)

    def key(point: Mapping[str, Any], dims: Sequence[str]) -> tuple[Any, ...]:
        return tuple(point["at"].get(d) for d in dims)

    def across(point: Mapping[str, Any]) -> tuple[Any, ...]:
        return (point["metric"],) if several else key(point, columns)

    heads = list(dict.fromkeys(across(p) for p in points))
    if not several:
        heads = _sorted(heads)
    body = {(key(p, rows), across(p)): cell(p, bool(table["difference"])) for p in points}
    head = [called(d, names) for d in rows]
    for h in heads:
        if several:
            head.append(metric_words(h[0]))
        else:
            head.append(", ".join(heading(d, v, names) for d, v in zip(columns, h, strict=True)) or _what(table))
    lines = []
    for down in _sorted(key(p, rows) for p in points):
        lines.append([*(text(v) for v in down), *(body.get((down, h), "–") for h in heads)])
    return head, lines


def markdown(table: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A table in Markdown."""
    head, lines = grid(table, names)
    if not lines:
        return "*No cell of this table is finished.*"
    rule = ["---"] * len(table["rows"]) + ["---:"] * (len(head) - len(table["rows"]))
    return "\n".join("| " + " | ".join(v.replace("|", "\\|") for v in line) + " |" for line in (head, rule, *lines))


def print_study(summary: Mapping[str, Any], console: Console) -> None:
    """Prints a study's tables and the verdicts of its checks."""
    names = summary["study"]["names"]
    for shown in summary["tables"]:
        head, lines = grid(shown, names)
        table = Table(title=shown["title"], title_justify="left", title_style="bold")
        for i, name in enumerate(head):
            table.add_column(name, justify="left" if i < len(shown["rows"]) else "right", overflow="fold")
        for line in lines:
            table.add_row(*(Text(v) for v in line))
        console.print(table)
    for check in summary["checks"]:
        console.print(Text(check_line(check)), soft_wrap=True)


def cell(point: Mapping[str, Any], difference: bool) -> str:
    """``0.892 [0.863, 0.917]``; a difference with its sign, and a star where it is significant (Holm, 0.05)."""
    sign = "+" if difference else ""
    shown = format(point["mean"], f"{sign}.{digits(point['metric'])}f")
    if point["ci_low"] is not None:
        d = f"{sign}.{digits(point['metric'])}f"
        shown += f" [{point['ci_low']:{d}}, {point['ci_high']:{d}}]"
    star = difference and point["p_holm"] is not None and point["p_holm"] <= 0.05
    return shown + ("*" if star else "")


def digits(metric: str) -> int:
    """Decimals of a metric: accuracies three, shares of the latent two, counts and nats one."""
    if metric in LATENT or metric in ("ari", "silhouette", "same_group_weight", "seconds_per_round"):
        return 2
    return 1 if metric in ("kl", "kl_standard", "mean_norm", "effective_components", "clusters") else 3


def check_line(check: Mapping[str, Any]) -> str:
    """``holds: ... (9 of 9 tests; +0.101 to +0.393)``: a check's verdict with its numbers."""
    return f"{VERDICTS[verdict(check)]}: {check['says']} ({evidence(check)})"


def evidence(check: Mapping[str, Any]) -> str:
    """How many tests passed, failed and are open, and between which values the quantity lies."""
    tests = check["tests"]
    if not tests:
        return "no cell of it is finished"
    count = {o: sum(t["outcome"] == o for t in tests) for o in ("pass", "fail", "open")}
    shown = check["burden"]
    if len(tests) == 1:
        parts = [{"pass": shown, "fail": "refuted", "open": "undecided"}[tests[0]["outcome"]]]
    else:
        parts = [f"{shown} in {count['pass']} of {len(tests)} tests"]
        parts += [f"{count['fail']} against it"] if count["fail"] else []
        parts += [f"{count['open']} undecided"] if count["open"] else []
        parts += _by_rival(check) if count["pass"] < len(tests) else []
    parts.append(_span(check))
    if check["missing"]:
        parts.append(f"{check['missing']} not run")
    return "; ".join(parts)


def _by_rival(check: Mapping[str, Any]) -> list[str]:
    """``not against fedvpl (0 of 3)``, where several things are subtracted; of many, those against which it passes."""
    several = [k for k, v in (check["minus"] or {}).items() if isinstance(v, list)]
    found: dict[str, list[bool]] = {}
    for t in check["tests"]:
        rival = " ".join(text(t["minus"][k]) for k in several)
        found.setdefault(rival, []).append(t["outcome"] == "pass")
    if not several:
        return []
    whole = [rival for rival, passed in found.items() if all(passed)]
    rest = [f"{r} ({sum(passed)} of {len(passed)})" for r, passed in found.items() if not all(passed)]
    if len(rest) <= FEW:
        return [f"not against {', '.join(rest)}"]
    return [f"only against {', '.join(whole)}" if whole else "against none"]


def _span(check: Mapping[str, Any]) -> str:
    tests, metric = check["tests"], check["metric"]
    form = f"{'+' if check['minus'] else ''}.{digits(metric)}f"
    what = ("difference in " if check["minus"] else "") + metric_words(metric)
    least, most = (f(tests, key=lambda t: t["mean"]) for f in (min, max))
    if len(tests) == 1:
        inside = "" if least["ci_low"] is None else f" [{least['ci_low']:{form}}, {least['ci_high']:{form}}]"
        return f"{what} {least['mean']:{form}}{inside}"
    return f"{what} {least['mean']:{form}} to {most['mean']:{form}}"


def called(dimension: str, names: Mapping[str, str]) -> str:
    """How a dimension is called: by the study, else the key's last part in words."""
    return names.get(dimension, dimension.rpartition(".")[2].replace("_", " ").strip())


def heading(dimension: str, v: Any, names: Mapping[str, str]) -> str:
    """A value with what it is, where it does not speak for itself."""
    if dimension in ("benchmark", "variant", "method", "population", "inference"):
        return text(v)
    return f"no {called(dimension, names)}" if v is None else f"{called(dimension, names)} {text(v)}"


def text(v: Any) -> str:
    """A value of a dimension."""
    if v is None:
        return "none"
    return f"{v:g}" if isinstance(v, float) else str(v)


def _what(table: Mapping[str, Any]) -> str:
    word = metric_words(table["metric"])
    return f"difference in {word}" if table["difference"] else word


def in_order(values: Iterable[Any]) -> list[Any]:
    """Distinct values: numbers ascending, everything else (also among numbers) as it came."""
    distinct = list(dict.fromkeys(values))
    return sorted(distinct) if all(isinstance(v, (int, float)) for v in distinct) else distinct


def _sorted(keys: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Distinct tuples, each position `in_order`, the first one slowest."""
    keys = list(dict.fromkeys(keys))
    orders = [in_order(column) for column in zip(*keys, strict=True)]
    return sorted(keys, key=lambda k: [order.index(v) for order, v in zip(orders, k, strict=True)])
