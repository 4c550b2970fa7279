"""The table of faults: every kind injected into trainings of the vectorised engine, with and without a defence.

A fifth of the clients is faulty, in every round in which it is sampled. Each kind runs without a defence, with
rejection of unsound uploads and of posteriors that are outliers (mean of the rest), and with the same before a trimmed
mean and a median. Accuracy is that of mixture inference on users that never took part, a mean over the seeds.

    python benchmarks/faults.py configs/hh-attributes-2.yaml --rounds 60 --seeds 2 --page docs/faults.md
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedvpa.apps.runs import environment
from fedvpa.apps.training import load
from fedvpa.config import FAULTS, ExperimentConfig, load_config
from fedvpa.evaluation.experiment import Prepared
from fedvpa.evaluation.protocol import score_predictions
from fedvpa.federation import faults, rounds
from fedvpa.federation.rounds import RoundReport, TrainingState
from fedvpa.methods.registry import create

REJECT = ["defence.reject=true", "defence.posterior_outlier=5"]
DEFENCES = {
    "none": [],
    "rejection": REJECT,
    "rejection, trimmed mean": [*REJECT, "federation.aggregation=trimmed-mean", "federation.byzantine=0.3"],
    "rejection, median": [*REJECT, "federation.aggregation=median"],
}
MIXED = "all kinds"
NOTES = """
How to read it: an upload that is lost or rejected costs a client its part in the round and nothing else, so these rows
agree. Clients with exchanged labels are, to this method, users with the opposite wish, of whom there are as many: they
harm nobody. A change that is scaled, or that goes back to the model of round 0, is within the bounds and is taken.
Against updates of the wrong sign only robust aggregation helps. `defence.update_outlier` is off in all columns: the
sizes of honest changes differ too much within a round for a sharp bound.
"""
REASONS = {
    "Input contains NaN": "parameters that are no numbers make posteriors that are none, which cannot be clustered",
    "must have same slice shapes": "an upload of another shape fits into no stack with the round's other uploads",
}
"""What PyTorch and scikit-learn say where training ends, and what it means."""


def case(prepared: Prepared, config: ExperimentConfig) -> dict[str, Any]:
    """One training: what was injected, what became of it, and the accuracy."""
    method = create("fedvpa-gp", prepared.setup(config))
    injected, seen = Counter[str](), Counter[str]()
    done: list[TrainingState] = []

    def after(report: RoundReport, state: TrainingState) -> None:
        done[:] = [state]
        for k, v in report.faults.items():
            (injected if k.startswith("injected/") else seen)[k.removeprefix("injected/")] += v
        wanted = rounds.sample_clients(config, len(prepared.clients), report.round - 1)
        expected = faults.struck(config, len(prepared.clients), wanted, report.round - 1)
        counted = sum(v for k, v in report.faults.items() if k.startswith("injected/"))
        assert counted == len(expected), "a fault was lost"

    ended, began = "", time.perf_counter()
    try:
        rounds.train(method, config, prepared.clients, None, after)
    except (RuntimeError, ValueError) as e:  # what an unchecked upload does to a server without a defence
        ended = str(e).splitlines()[0]
    completed = done[-1].server.round if done else 0
    theta = done[-1].server.theta if done else {}
    lost = bool(ended) or not all(bool(v.isfinite().all()) for v in theta.values())
    return {
        "injected": sum(injected.values()),
        "rounds": completed,
        "silent": seen["silent"],
        "failed": seen["failed"],
        "rejected": seen["rejected"],
        "accuracy": None if lost else accuracy(prepared, method.predictor(done[-1].server, prepared.pool), config),
        "ended": ended or ("the model is no longer finite" if lost else ""),
        "seconds": time.perf_counter() - began,
    }


def accuracy(prepared: Prepared, predictor: Any, config: ExperimentConfig) -> float:
    panel = prepared.panels["unseen"]
    users = predictor.infer(panel.context(config.federation.context_pairs), "mixture", panel.groups)
    return float(score_predictions(panel, predictor.predict(users, panel.query)).values["accuracy"])


def measure(path: str, count: int, share: float, seeds: int) -> dict[str, Any]:
    """All cases, each a list with a case per seed."""
    found = [one_seed(path, count, share, seed) for seed in range(seeds)]
    table = {kind: {name: [t[kind][name] for t in found] for name in DEFENCES} for kind in found[0]}
    about = {"config": path, "rounds": count, "share": share, "seeds": seeds}
    return {**about, "environment": environment(), "table": table}


def one_seed(path: str, count: int, share: float, seed: int) -> dict[str, dict[str, Any]]:
    """The cases of a seed; data and features are prepared once."""
    base = [f"federation.rounds={count}", f"seed={seed}"]
    config = load_config(path, base)
    prepared, table = load(config)[0], {}
    for kind in ("no fault", *FAULTS, MIXED):
        kinds = {"no fault": [], MIXED: list(FAULTS)}.get(kind, [kind])
        given = [*base, f"faults.kinds=[{','.join(kinds)}]", f"faults.clients={share}"]
        table[kind] = {}
        for name, defence in DEFENCES.items():
            now = load_config(path, [*given, *defence])
            table[kind][name] = case(replace(prepared, config=now), now)
            print(seed, kind, name, table[kind][name], flush=True)
    return table


def page(result: dict[str, Any]) -> str:
    """Markdown."""
    table, count, seeds = result["table"], result["rounds"], result["seeds"]
    cases = [c for row in table.values() for found in row.values() for c in found]
    guarded = [c for row in table.values() for name, found in row.items() if name != "none" for c in found]
    ended = sum(c["rounds"] < count for c in guarded)
    config, share, about = result["config"], result["share"], result["environment"]
    lines = [
        "# Faults",
        "",
        "What goes wrong at clients on purpose (`faults.*`), and what the server does about it (`defence.*`,",
        "`federation.aggregation`), in the vectorised engine. Written by",
        f"`python benchmarks/faults.py {config} --rounds {count} --share {share} --seeds {seeds}"
        " --page docs/faults.md`;",
        f"commit {about['commit']}, {about['processor']}.",
        "",
        f"{share:.0%} of the clients are faulty, in every round in which they are sampled.",
        f"{sum(c['injected'] for c in cases):,} faults were injected into {len(cases)} trainings of {count} rounds; "
        "each was counted in its round.",
        f"Of the {len(guarded)} trainings with a defence, {ended or 'none'} ended early.",
        "",
        "*Injected*, *lost* (uploads that never came) and *rejected* (uploads that the server refused, naming the",
        "client) are those of the column *rejection*; every other faulty upload was aggregated. *Rounds*: the fewest",
        "that a seed completed without a defence, and with rejection.",
        f"Accuracy: unseen users, mixture inference, mean of {seeds} seed(s).",
        "",
        "| kind | injected | lost | rejected | rounds without / with | " + " | ".join(DEFENCES) + " |",
        "| --- | ---: | ---: | ---: | ---: |" + " ---: |" * len(DEFENCES),
    ]
    for kind, row in table.items():
        first = row["rejection"]
        injected, rejected = (sum(c[k] for c in first) for k in ("injected", "rejected"))
        lost = sum(c["silent"] + c["failed"] for c in first)
        fewest = [min(c["rounds"] for c in found) for found in (row["none"], first)]
        line = [kind, str(injected), str(lost), str(rejected), f"{fewest[0]} / {fewest[1]}", *map(mean, row.values())]
        lines.append(f"| {' | '.join(line)} |")
    reasons = {kind: why for kind, row in table.items() for c in row["none"] if (why := reason(c["ended"]))}
    lines.append(NOTES.rstrip())
    lines += ["", "A dash: training ended early in some seed, and there is no accuracy. Why, without a defence:", ""]
    lines += [f"* {kind}: {why}." for kind, why in reasons.items()]
    return "\n".join(lines) + "\n"


def mean(found: list[dict[str, Any]]) -> str:
    """Over seeds; a dash where one of them has no accuracy."""
    values = [c["accuracy"] for c in found]
    return "-" if None in values else f"{sum(values) / len(values):.3f}"


def reason(ended: str) -> str:
    """Why a training ended, in words where they are known; empty: it did not."""
    return next((words for said, words in REASONS.items() if said in ended), ended)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="an experiment, such as configs/hh-attributes-2.yaml")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--share", type=float, default=0.2, help="share of the clients that are faulty")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--page", type=Path, help="write the table to this file")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(args.config, args.rounds, args.share, args.seeds)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    text = page(result)
    print(text)
    if args.page:
        args.page.write_text(text)


if __name__ == "__main__":
    main()
