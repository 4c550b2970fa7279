"""Seconds per round: sampled clients as stacks (`federation.engine: vectorized`) against one after another (`loop`).

Both engines run the same rounds of FedVPA-GP with every part switched on (mixture prior, prototypes) and fused AdamW;
all clients of the federation are sampled. Features are random: the work does not depend on their values. The engines
take turns, so that other load hits both; figures are medians. The roofline is measured in the same run:

    operations (GEMMs of forward and backward, counted from the shapes) / measured GEMM rate
    + bytes (AdamW and gradients) / measured memory bandwidth

The two terms belong to different phases of a step (GEMMs, then AdamW), hence the sum; the larger of the two alone is
written to the JSON as well. What is counted, and why no more: the operations are those of the GEMMs that the engine
really runs, at the best rate that any well-shaped GEMM reached; element-wise work (GELU, dropout, losses) counts as
nothing, although it takes time on any machine. The bytes are those of each parameter, its gradient and its two moments
(p, g, m, v read, p, m, v and g written, once per step), at the bandwidth of main memory, since a stack's 64 MiB do not
stay in a cache. Activations are left out: an implementation that trains client by client keeps them in cache.

Peak memory comes from a process of its own for each size, at the first of the dimensions.

Rounds of many clients use fewer local steps, at two numbers of steps, and the time of the configured number follows
from the straight line through both (marked `scaled`). With one thread the clock is CPU time, so that other load on the
machine matters less.

    python benchmarks/rounds.py --sizes 10,50 --repeats 5 --json rounds.json
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from fedvpa.config import ExperimentConfig, parse_config
from fedvpa.federation import rounds
from fedvpa.federation.rounds import ClientData, TrainingState
from fedvpa.methods.base import Pool, Setup
from fedvpa.methods.fedvpa_gp import FedVPAGP
from fedvpa.preferences.schema import Client, LabelledPairs
from fedvpa.preferences.seeding import generator

PAIRS_PER_CLIENT, CLUSTERS, POOL = 40, 4, 2000
TARGETS = {576: 1.7, 64: 4.0}
TARGET_CLIENTS, TARGET_ROOFLINE = 50, 0.6
ENGINES = ("vectorized", "loop")


def clock() -> float:
    """Wall time; with one thread CPU time, which leaves out the waiting for a busy machine."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


FULL_STEPS_UP_TO = 50
"""Rounds of more clients are extrapolated from few local steps."""
SCALED_FROM = (1, 4)
"""The two numbers of local steps of that extrapolation."""


@dataclass(frozen=True)
class Bench:
    """A federation of `clients` clients, all sampled, in the middle of a training."""

    clients: int
    features: int

    def config(self, engine: str, steps: int) -> ExperimentConfig:
        federation = {"clients": self.clients, "sampled_clients": self.clients, "engine": engine, "local_steps": steps}
        federation |= {"local_optimizer": "adamw", "learning_rate": 1e-3}
        method = {"name": "fedvpa-gp", "prior_start": 0, "ortho_start": 0}
        return parse_config({"federation": federation, "method": method})

    def data(self) -> ClientData:
        g = generator(0, "bench")
        pool = Pool.of_pairs(torch.randn(POOL, 2, self.features, generator=g))
        clients = []
        for i in range(self.clients):
            index = torch.randperm(POOL, generator=g)[:PAIRS_PER_CLIENT]
            y = 2 * torch.randint(2, (PAIRS_PER_CLIENT,), generator=g) - 1
            clients.append(Client(str(i), None, LabelledPairs(index, y.to(torch.int8)), LabelledPairs.of([], [])))
        return ClientData(pool, clients)

    def method(self, config: ExperimentConfig) -> FedVPAGP:
        return FedVPAGP(Setup(config, self.features, self.clients, CLUSTERS))

    def state(self) -> TrainingState:
        """A state in which every client has uploaded and clusters are in use."""
        config = self.config("vectorized", 1)
        start = rounds.start(self.method(config), config, self.clients)
        means = torch.randn(start.server.means.shape, generator=generator(0, "means"))
        server = replace(
            start.server,
            means=means,
            counts=torch.full((self.clients,), PAIRS_PER_CLIENT),
            labels=torch.arange(self.clients) % CLUSTERS,
            centroids=means[:CLUSTERS],
            clustered=True,
        )
        return replace(start, server=server)

    def timed(self, engine: str, steps: int, data: ClientData, state: TrainingState) -> float:
        config = self.config(engine, steps)
        method = self.method(config)
        began = clock()
        rounds.one_round(method, config, data, state)
        return clock() - began


def clock_name() -> str:
    return "CPU time" if torch.get_num_threads() == 1 else "wall time"


def default_steps() -> int:
    """The paper's 30 local steps: more than the default's 2, so that steps and not the round around them are timed."""
    return 30


def compare(bench: Bench, repeats: int) -> dict[str, Any]:
    """Median seconds per round of both engines, in turns."""
    data, state, full = bench.data(), bench.state(), default_steps()
    points = (full,) if bench.clients <= FULL_STEPS_UP_TO else SCALED_FROM
    warm = Bench(min(bench.clients, FULL_STEPS_UP_TO), bench.features)
    for engine in ENGINES:
        warm.timed(engine, 1, warm.data(), warm.state())
    seconds: dict[str, list[float]] = {e: [] for e in ENGINES}
    for turn in range(repeats):
        for engine in ENGINES if turn % 2 else ENGINES[::-1]:
            measured = [bench.timed(engine, steps, data, state) for steps in points]
            slope = (measured[-1] - measured[0]) / (points[-1] - points[0]) if len(points) > 1 else 0.0
            seconds[engine].append(measured[0] + slope * (full - points[0]))
    median = {e: statistics.median(v) for e, v in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["loop"], seconds["vectorized"], strict=True)]
    return {
        "clients": bench.clients,
        "features": bench.features,
        "local_steps": full,
        "scaled": len(points) > 1,
        "repeats": repeats,
        "seconds": median,
        "all_seconds": seconds,
        "ratio": statistics.median(ratios),
    }


# Roofline ------------------------------------------------------------------------------------------------------------


def operations(bench: Bench) -> int:
    """Floating-point operations of the GEMMs of one round, forward and backward, counted from their shapes.

    Every client does the same, so one client with one step and with two gives the statistics' pass and a step.
    """
    data, state = bench.data(), bench.state()
    counted = []
    for steps in (1, 2):
        config = bench.config("loop", steps)
        with FlopCounterMode(display=False) as counter:
            rounds.run_clients(bench.method(config), config, data, state, torch.tensor([0]))
        counted.append(counter.get_total_flops())
    step = counted[1] - counted[0]
    return bench.clients * (counted[0] + (default_steps() - 1) * step)


def traffic(bench: Bench) -> int:
    """Bytes of one round: AdamW reads p, g, m, v and writes p, m, v; the backward pass writes g."""
    config = bench.config("vectorized", 1)
    theta = bench.method(config).init_server(generator(0)).theta
    parameters = sum(t.numel() for t in theta.values()) + bench.clients  # and log pi
    return bench.clients * default_steps() * 8 * 4 * parameters


def best_rate(work: float, run: Callable[[], Any], repeats: int = 7) -> float:
    """Work per second of the fastest of some runs."""
    run()
    times = []
    for _ in range(repeats):
        began = clock()
        run()
        times.append(clock() - began)
    return work / min(times)


def gemm_rate(features: int) -> float:
    """Operations per second: the better of a big square product and a batch of the model's first layer."""
    hidden, n = ExperimentConfig().model.hidden_dim, 2 * PAIRS_PER_CLIENT
    square = torch.randn(1024, 1024)
    x, w = torch.randn(16, n, features), torch.randn(16, features, hidden)
    return max(
        best_rate(2 * 1024**3, lambda: square @ square),
        best_rate(2 * 16 * n * features * hidden, lambda: x @ w),
    )


def bandwidth() -> float:
    """Bytes per second of a triad a = b + s c over arrays of 128 MiB; three streams, as counted for AdamW."""
    b, c = torch.randn(2, 2**25)
    a = torch.empty_like(b)
    return best_rate(3 * b.nbytes, lambda: torch.add(b, c, alpha=0.5, out=a), 5)


def roofline(bench: Bench, gemm: float, memory: float) -> dict[str, float]:
    work, moved = operations(bench), traffic(bench)
    compute, transfer = work / gemm, moved / memory
    return {
        "operations": work,
        "bytes": moved,
        "compute_seconds": compute,
        "memory_seconds": transfer,
        "sum_seconds": compute + transfer,
        "max_seconds": max(compute, transfer),
    }


# Memory --------------------------------------------------------------------------------------------------------------


def peak_memory(bench: Bench, engine: str) -> float:
    """Peak resident MiB of a process of its own that runs one round with one local step."""
    command = [sys.executable, __file__, "--alone", engine, "--sizes", str(bench.clients)]
    done = subprocess.run(
        [*command, "--features", str(bench.features), "--threads", str(torch.get_num_threads())],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.splitlines()[-1])


def alone(bench: Bench, engine: str) -> float:
    bench.timed(engine, 1, bench.data(), bench.state())
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss starts at the peak of the process that started this one
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Report --------------------------------------------------------------------------------------------------------------


def measure(sizes: list[int], features: list[int], repeats: int, memory: bool) -> dict[str, Any]:
    """Everything, as one JSON-ready mapping."""
    stream, rates, results = bandwidth(), dict.fromkeys(features, 0.0), []
    for width in features:
        for clients in sizes:
            bench = Bench(clients, width)
            # The rates just before and just after the rounds; the best of the whole run counts, for every row.
            rates[width] = max(rates[width], gemm_rate(width))
            found = compare(bench, repeats if clients <= FULL_STEPS_UP_TO else 1)
            rates[width], stream = max(rates[width], gemm_rate(width)), max(stream, bandwidth())
            if memory and width == features[0]:
                found["peak_mib"] = {engine: peak_memory(bench, engine) for engine in ENGINES}
            results.append(found)
            print(f"D = {width}, {clients} clients: {found['ratio']:.2f}x", file=sys.stderr, flush=True)
    for found in results:
        bench = Bench(found["clients"], found["features"])
        found["roofline"] = roofline(bench, rates[bench.features], stream)
        found["roofline_share"] = found["roofline"]["sum_seconds"] / found["seconds"]["vectorized"]
    machine = {
        "threads": torch.get_num_threads(),
        "clock": clock_name(),
        "bandwidth": stream,
        "gemm_rate": rates,
        "torch": torch.__version__,
    }
    return {"machine": machine, "rounds": results, "targets": targets(results)}


def targets(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was aimed at, what was reached."""
    found = []
    for row in results:
        if row["clients"] == TARGET_CLIENTS and row["features"] in TARGETS:
            name = f"engine against loop, {row['clients']} clients, {row['features']}-dimensional inputs"
            wanted = TARGETS[row["features"]]
            found.append({"name": name, "target": wanted, "value": row["ratio"], "met": row["ratio"] >= wanted})
            share, name = row["roofline_share"], f"share of the roofline, {row['features']}-dimensional inputs"
            found.append({"name": name, "target": TARGET_ROOFLINE, "value": share, "met": share >= TARGET_ROOFLINE})
    return found


def show(result: dict[str, Any], console: Console) -> None:
    machine = result["machine"]
    rate = ", ".join(f"{v / 1e9:.0f} GFLOP/s (D = {k})" for k, v in machine["gemm_rate"].items())
    table = Table(
        title=f"Seconds per round ({machine['clock']}), {machine['threads']} thread(s); GEMM {rate}; "
        f"memory {machine['bandwidth'] / 1e9:.1f} GB/s"
    )
    for column in (
        "D",
        "clients",
        "vectorized",
        "loop",
        "ratio",
        "compute + memory",
        "roofline",
        "MiB vec.",
        "MiB loop",
    ):
        table.add_column(column, justify="right")
    for row in result["rounds"]:
        line, peak = row["roofline"], row.get("peak_mib", {})
        mark = " scaled" if row["scaled"] else ""
        table.add_row(
            str(row["features"]),
            str(row["clients"]),
            f"{row['seconds']['vectorized']:.2f}{mark}",
            f"{row['seconds']['loop']:.2f}{mark}",
            f"{row['ratio']:.2f}",
            f"{line['compute_seconds']:.2f}+{line['memory_seconds']:.2f}",
            f"{row['roofline_share']:.0%}",
            *(f"{peak[e]:.0f}" if peak else "-" for e in ENGINES),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10,50,200,1000", help="sampled clients (default 10,50,200,1000)")
    parser.add_argument("--features", default="576,64", help="dimensions D of the inputs (default 576,64)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each engine (default 3; 1 above 50 clients)")
    parser.add_argument("--threads", type=int, help="threads (default: torch's)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--alone", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    sizes, features = ([int(v) for v in text.split(",")] for text in (args.sizes, args.features))
    if args.alone:
        print(alone(Bench(sizes[0], features[0]), args.alone))
        return
    result = measure(sizes, features, args.repeats, not args.no_memory)
    console = Console()
    show(result, console)
    for t in result["targets"]:
        console.print(f"{t['name']}: {t['value']:.2f} (target {t['target']}): {'met' if t['met'] else 'missed'}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
