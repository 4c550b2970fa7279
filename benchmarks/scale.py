"""Many clients: time, memory and bytes of the vectorised engine with the full and with the compressed prior.

10,000 clients x 16 pairs, 100 sampled, random features of 576 dimensions, four groups of users with linear rules. Each
case is a process of its own. The compressed case runs all 200 rounds. Where `--rounds` is less, and for the full prior
always, the time of 200 rounds is extrapolated from rounds in which every client is known already and all parts of the
method are on, without the first, which loads code; it is an upper bound and marked `scaled`. Bytes per client are those
of a round in which all N clients are known.

    python benchmarks/scale.py --json scale.json
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fedvpa.apps.runs import environment
from fedvpa.config import ExperimentConfig, parse_config
from fedvpa.federation import rounds
from fedvpa.federation.rounds import ClientData, TrainingState
from fedvpa.methods.base import Pool, Setup
from fedvpa.methods.components import compress
from fedvpa.methods.components import empty as no_components
from fedvpa.methods.fedvpa_gp import FedVPAGP
from fedvpa.preferences.schema import Client, LabelledPairs
from fedvpa.preferences.seeding import generator

CLIENTS, PAIRS, SAMPLED, ROUNDS, POOL, FEATURES, GROUPS = 10_000, 16, 100, 200, 20_000, 576, 4
COMPONENTS = 32
SCALED_ROUNDS = 4
LATE_ROUNDS = 10
BYTES_AT = (100, 1000, 10_000)
MEMORY_LIMIT = 8.0
"""GiB"""


def configuration(clients: int, components: int, count: int) -> ExperimentConfig:
    federation = {"clients": clients, "sampled_clients": min(SAMPLED, clients), "rounds": count}
    return parse_config({"federation": federation, "method": {"name": "fedvpa-gp", "prior_components": components}})


def world(clients: int) -> ClientData:
    """Users whose preference is a linear rule of their group; group 1 wants the opposite of 0, 3 of 2."""
    g = generator(0, "scale")
    x = torch.randn(POOL, 2, FEATURES, generator=g)
    rules = torch.randn(GROUPS // 2, FEATURES, generator=g).repeat_interleave(2, 0)
    rules[1::2] *= -1
    labels = torch.where(rules @ (x[:, 0] - x[:, 1]).T > 0, 1, -1).to(torch.int8)
    none = LabelledPairs.of([], [])
    held = []
    for i in range(clients):
        index = torch.randint(POOL, (PAIRS,), generator=g)
        held.append(Client(str(i), None, LabelledPairs(index, labels[i % GROUPS, index]), none))
    return ClientData(Pool.of_pairs(x), held)


def everybody_known(method: FedVPAGP, config: ExperimentConfig, clients: int, at: int) -> TrainingState:
    """A state in which every client has uploaded, before round `at`."""
    start = rounds.start(method, config, clients)
    means = torch.randn(start.server.means.shape, generator=generator(0, "means"))
    means[:, :2] += 4 * torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])[torch.arange(clients) % GROUPS]
    counts, extra = torch.full((clients,), PAIRS), dict(start.server.extra)
    if method.compressed:
        fresh = no_components(method.components, clients, means.shape[1], means.dtype)
        extra |= compress(means, start.server.variances, counts, fresh, 0).named()
    known = {"means": means, "counts": counts, "centroids": means[:GROUPS], "labels": torch.arange(clients) % GROUPS}
    return replace(start, server=replace(start.server, round=at, clustered=True, extra=extra, **known))


def method_of(config: ExperimentConfig) -> FedVPAGP:
    return FedVPAGP(Setup(config, FEATURES, config.federation.clients, GROUPS))


def run(clients: int, components: int, count: int) -> dict[str, Any]:
    """Trains in this process: all of `ROUNDS`, or the last `count` of them with everybody known."""
    config, began = configuration(clients, components, ROUNDS), time.perf_counter()
    method, data = method_of(config), world(clients)
    whole = count >= ROUNDS
    state = None if whole else everybody_known(method, config, clients, ROUNDS - count)
    setup, seconds = time.perf_counter() - began, list[float]()
    last = rounds.train(method, config, data, state, lambda report, _: seconds.append(report.seconds))
    late = seconds[1:] or seconds
    trained = sum(seconds) if whole else sum(late) / len(late) * ROUNDS
    return {
        "clients": clients,
        "components": components,
        "rounds_run": len(seconds),
        "scaled": not whole,
        "setup_seconds": setup,
        "seconds": trained,
        "late_seconds_per_round": statistics.fmean(late[-LATE_ROUNDS:]),
        "known": int((last.server.counts > 0).sum()),
        "peak_gib": peak_memory(),
        "log_pi_mib": last.private["log_pi"].nbytes / 2**20,
        "threads": torch.get_num_threads(),
    }


def peak_memory() -> float:
    """Peak resident GiB of this process."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**20


def traffic(clients: int, components: int) -> dict[str, int]:
    """Bytes up and down per client and round when all clients are known."""
    config = configuration(clients, components, ROUNDS)
    method = method_of(config)
    state = everybody_known(method, config, clients, ROUNDS - 1).server
    theta = sum(t.numel() * t.element_size() for t in state.theta.values())
    up = theta + 2 * state.means.shape[1] * state.means.element_size() + 8 + 4 * len(method.metric_names)
    down = method.download_bytes(method.broadcast(state))
    return {"clients": clients, "components": components, "up": up, "down": down, "theta": theta}


def alone(clients: int, components: int, count: int, threads: int) -> dict[str, Any]:
    """`run` in a process of its own."""
    case = f"{clients},{components},{count}"
    command = [sys.executable, __file__, "--alone", case, "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{CLIENTS} clients x {PAIRS} pairs, {SAMPLED} sampled, {ROUNDS} rounds")
    for column in ("prior", "seconds", "late s/round", "peak GiB", "log pi MiB", "rounds run"):
        table.add_column(column, justify="right")
    for r in result["runs"]:
        mark = " scaled" if r["scaled"] else ""
        cells = (f"{r['seconds']:.0f}{mark}", f"{r['late_seconds_per_round']:.2f}", f"{r['peak_gib']:.2f}")
        table.add_row(prior_name(r), *cells, f"{r['log_pi_mib']:.1f}", str(r["rounds_run"]))
    console.print(table)
    table = Table(title="Bytes per client and round, all N clients known")
    for column in ("N", "prior", "up", "down", "down without theta"):
        table.add_column(column, justify="right")
    for r in result["bytes"]:
        table.add_row(str(r["clients"]), prior_name(r), str(r["up"]), str(r["down"]), str(r["down"] - r["theta"]))
    console.print(table)


def page(result: dict[str, Any]) -> str:
    """Markdown."""
    machine = result["environment"]
    lines = [
        "# Many clients",
        "",
        f"Written by `python benchmarks/scale.py --rounds {result['runs'][0]['rounds_run']} --page docs/scale.md`; "
        f"{machine['commit']}, {machine['processor']}, {result['runs'][0]['threads']} threads.",
        f"{CLIENTS} clients x {PAIRS} pairs, {SAMPLED} sampled, {ROUNDS} rounds, {FEATURES} random features.",
        "*scaled*: the time of all rounds is extrapolated from the last ones, with every client known.",
        "",
        "| prior | seconds | seconds per late round | peak GiB | private log pi, MiB | rounds run |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in result["runs"]:
        time_, mark = f"{r['seconds']:.0f}", " scaled" if r["scaled"] else ""
        cells = (time_ + mark, f"{r['late_seconds_per_round']:.2f}", f"{r['peak_gib']:.2f}", f"{r['log_pi_mib']:.1f}")
        lines.append(f"| {prior_name(r)} | {' | '.join(cells)} | {r['rounds_run']} |")
    lines += [
        "",
        "Bytes per client and round when all N clients are known; the parameters are the same for every N.",
        "",
        "| N | prior | up | down | down without the parameters |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for r in result["bytes"]:
        lines.append(f"| {r['clients']} | {prior_name(r)} | {r['up']} | {r['down']} | {r['down'] - r['theta']} |")
    return "\n".join(lines) + "\n"


def prior_name(row: dict[str, Any]) -> str:
    return f"K = {row['components']}" if row["components"] else "full"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"with the compressed prior (default {ROUNDS}: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--page", type=Path, help="write the tables to this file")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.alone:
        print(json.dumps(run(*map(int, args.alone.split(",")))))
        return
    both = ((COMPONENTS, args.rounds), (0, min(args.rounds, SCALED_ROUNDS)))
    result: dict[str, Any] = {"bytes": [traffic(n, k) for n in BYTES_AT for k in (0, COMPONENTS)]}
    result["environment"] = environment()
    result["runs"] = [alone(CLIENTS, k, count, args.threads) for k, count in both]
    peak = result["runs"][0]["peak_gib"]
    target = {"name": "10,000 clients with the compressed prior, GiB", "value": peak, "target": MEMORY_LIMIT}
    result["targets"] = [target | {"met": peak <= MEMORY_LIMIT}]
    console = Console()
    show(result, console)
    console.print(
        f"{target['name']}: {peak:.2f} (target {MEMORY_LIMIT}): {'met' if peak <= MEMORY_LIMIT else 'missed'}"
    )
    if args.page:
        args.page.write_text(page(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
