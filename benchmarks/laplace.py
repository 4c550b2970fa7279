"""Time and memory of fedvpa-laplace: a round of training against fedvpa-gp's, and the posteriors of new people.

Both methods train with their default settings, on the same people, items and judgements, all people in every round:
16 choices of fresh items, or 80 votes on shared statements, where fedvpa-gp has the 40 pairs that it can make of
them. Rounds are those of the second half of a training: all parts of fedvpa-gp on, all components of the mixture there.
The methods take turns, so that other load hits both; figures are medians of wall time. Features are random, with four
groups of people that follow linear rules; the posteriors are those of a selector that was trained on such people for a
moment, as the number of Newton steps depends on it; it has the components that were left in the end, and the tables
of growth have as many as they say.

The roofline is that of `rounds.py`, measured in the same run: operations of all products (the network, forward and
backward, and the posteriors' design matrices, counted from their shapes) and of the Cholesky factors, at the best rate
of a GEMM, plus each posterior's factors written and read once per inference at the bandwidth of memory. Element-wise
work counts as nothing.

Memory and its growth come from a process of its own for each case.

    OMP_NUM_THREADS=2 python benchmarks/laplace.py --page docs/laplace-speed.md --json laplace.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

import rounds as engine
from fedvpa.apps.runs import environment
from fedvpa.config import ExperimentConfig, parse_config
from fedvpa.federation import rounds
from fedvpa.federation.rounds import ClientData, TrainingState
from fedvpa.methods.base import Pool, Setup
from fedvpa.methods.fedvpa_gp import FedVPAGP
from fedvpa.methods.fedvpa_laplace import FedVPALaplace, noise_of, observations
from fedvpa.preferences.schema import VOTE, Client, Judgements, LabelledPairs
from fedvpa.preferences.seeding import generator
from fedvpa.variational import laplace
from fedvpa.variational.laplace import Observations, Prior
from laplace_page import page, show
from scale import peak_memory

FEATURES, GROUPS, STATEMENTS, CHOICES, VOTES = 576, 4, 400, 16, 80
WORLDS = ("16 choices", "80 votes")
METHODS = {"fedvpa-laplace": FedVPALaplace, "fedvpa-gp": FedVPAGP}
TRAINED_ROUNDS, TRAINED_PEOPLE = 40, 100
RATIO, ALONE_MS, PER_SECOND = 2.0, 1.0, 20_000.0
"""The targets: rounds per round of fedvpa-gp, milliseconds for one person, people per second in a batch."""
BATCH = 4000


class Size(NamedTuple):
    """Of an inference."""

    people: int = 1000
    answers: int = 16
    components: int = 8
    dim: int = 17


GROWTH = (
    ("people", (250, 1000, 4000)),
    ("answers", (4, 16, 64)),
    ("components", (1, 4, 16)),
    ("dim", (9, 17, 33, 65)),
)


@cache
def world(name: str, people: int) -> ClientData:
    """People in four groups with linear rules, group 1 against 0 and 3 against 2, who are right in 9 of 10 cases."""
    g = generator(0, "laplace", name)
    rules = torch.randn(GROUPS // 2, FEATURES, generator=g).repeat_interleave(2, 0)
    rules[1::2] *= -1
    votes = name == "80 votes"
    items = torch.randn(STATEMENTS if votes else 2 * engine.POOL, FEATURES, generator=g)
    liked = rules @ items.T
    pairs, clients = [torch.arange(len(items)).view(-1, 2)], []
    for i in range(people):
        mine, wrong = liked[i % GROUPS], torch.rand(VOTES, generator=g) < 0.1
        if votes:
            on = torch.randperm(STATEMENTS, generator=g)[:VOTES]
            y = torch.where((mine[on] > 0) ^ wrong, 1, -1)
            yes, no = on[y > 0], on[y < 0]
            ends = (
                torch.randint(len(yes), (VOTES // 2,), generator=g),
                torch.randint(len(no), (VOTES // 2,), generator=g),
            )
            index = torch.arange(VOTES // 2) + sum(map(len, pairs))
            pairs.append(torch.stack([yes[ends[0]], no[ends[1]]], 1))
            kind, one = torch.full((VOTES,), VOTE, dtype=torch.int8), torch.ones(VOTES)
            given = Judgements(on, torch.full_like(on, -1), y.float(), kind, one)
            train = LabelledPairs(index, torch.ones(VOTES // 2, dtype=torch.int8))
        else:
            index = torch.randperm(engine.POOL, generator=g)[:CHOICES]
            a, b = pairs[0][index].unbind(1)
            y = torch.where((mine[a] > mine[b]) ^ wrong[:CHOICES], 1, -1)
            given, train = None, LabelledPairs(index, y.to(torch.int8))
        clients.append(Client(str(i), None, train, LabelledPairs.of([], []), given))
    return ClientData(Pool(items, torch.cat(pairs)), clients)


def configuration(method: str, people: int, count: int | None = None) -> ExperimentConfig:
    federation = {"clients": people, "sampled_clients": people}
    settings: dict[str, Any] = {"federation": federation, "method": {"prior_start": 0, "ortho_start": 0}}
    if count is not None:
        settings["laplace"] = {"rounds": count}
    return parse_config(settings).for_method(method)


@cache
def training(name: str) -> tuple[TrainingState, TrainingState]:
    """A short training of fedvpa-laplace: before its last round, with all components, and after it, with the used."""
    config = configuration("fedvpa-laplace", TRAINED_PEOPLE, TRAINED_ROUNDS)
    method = FedVPALaplace(Setup(config, FEATURES, TRAINED_PEOPLE, GROUPS))
    states: list[TrainingState] = []
    with torch.enable_grad():
        rounds.train(method, config, world(name, TRAINED_PEOPLE), callback=lambda _, now: states.append(now))
    return states[-2], states[-1]


def trained(name: str) -> TrainingState:
    """The selector of the short training."""
    return training(name)[1]


# A round -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """A federation of `people`, all of whom take part."""

    method: str
    world: str
    people: int

    def state(self) -> TrainingState:
        """In the second half of a training."""
        if self.method == "fedvpa-gp":
            return engine.Bench(self.people, FEATURES).state()
        state = training(self.world)[0]
        server = replace(state.server, round=200, labels=torch.full((self.people,), -1))
        return replace(state, server=server)

    def round(self) -> Callable[[], Any]:
        config = configuration(self.method, self.people)
        method = METHODS[self.method](Setup(config, FEATURES, self.people, GROUPS))
        data, state = world(self.world, self.people), self.state()
        return lambda: rounds.one_round(method, config, data, state)


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def compare(name: str, people: int, repeats: int) -> dict[str, Any]:
    """Seconds of a round of each method, in turns."""
    runs = {method: Training(method, name, people).round() for method in METHODS}
    taken: dict[str, list[float]] = {method: [] for method in METHODS}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for method, run in runs.items():
            taken[method].append(seconds(run))
    ratios = [a / b for a, b in zip(taken["fedvpa-gp"], taken["fedvpa-laplace"], strict=True)]
    return {
        "world": name,
        "people": people,
        "seconds": {method: statistics.median(t) for method, t in taken.items()},
        "all_seconds": taken,
        "ratio": statistics.median(ratios),
    }


def least(name: str, people: int) -> dict[str, float]:
    """Operations and bytes of a round of fedvpa-laplace."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter sees the thread that it was started in
    with FlopCounterMode(display=False) as counter:
        Training("fedvpa-laplace", name, people).round()()
    torch.set_num_threads(threads)
    server = training(name)[0].server
    components, dim = server.centroids.shape
    factors = 2 * people * components  # with and without dropout
    moved = 2 * 4 * factors * dim**2
    return {"operations": counter.get_total_flops() + factors * dim**3 / 3, "bytes": moved}


# A new person --------------------------------------------------------------------------------------------------------


def people_of(size: Size) -> tuple[Observations, Prior]:
    """New people's choices and the prior, from the trained selector; of another size at random, to the same scale."""
    server = trained("16 choices").server
    prior = Prior(server.shares.log(), server.centroids, server.spread)
    data = world("16 choices", size.people)
    method = FedVPALaplace(Setup(configuration("fedvpa-laplace", size.people), FEATURES, size.people, GROUPS))
    predictor = method.predictor(server, data.pool)
    seen = observations(predictor.slope, predictor.offset, data.judgements.judged)
    if size == Size(size.people):
        return seen, prior
    g, most = generator(0, "size"), max(size)
    columns = torch.randint(seen.slope.shape[-1] - 1, (most,), generator=g)[: size.dim]
    rows = torch.randint(CHOICES, (most,), generator=g)[: size.answers]
    kinds = torch.arange(size.components) % len(prior.means)
    scale = (seen.slope.shape[-1] / size.dim) ** 0.5
    u = scale * seen.slope[:, rows][..., columns]
    seen = Observations(u, *(t[:, rows] for t in seen[1:]))
    means = prior.means[kinds][:, columns] / scale
    return seen, Prior(prior.log_weights[kinds].log_softmax(0), means, prior.variances[kinds][:, columns])


@torch.no_grad()
def alone(repeats: int) -> float:
    """Median milliseconds of one person's posterior."""
    seen, prior = people_of(Size(200))
    noise = noise_of(trained("16 choices").server.theta)
    each = [Observations(*(t[i : i + 1] for t in seen)) for i in range(len(seen.y))]
    turns = (partial(laplace.infer, each[i % len(each)], prior, noise) for i in range(repeats))
    return 1000 * statistics.median(map(seconds, turns))


@torch.no_grad()
def batch(repeats: int) -> float:
    """People per second, median over batches."""
    seen, prior = people_of(Size(BATCH))
    noise = noise_of(trained("16 choices").server.theta)
    laplace.infer(seen, prior, noise)
    return BATCH / statistics.median(seconds(lambda: laplace.infer(seen, prior, noise)) for _ in range(repeats))


@torch.no_grad()
def growth(size: Size) -> dict[str, Any]:
    """Seconds and MiB of an inference, in this process; what the process had before is not counted."""
    seen, prior = people_of(size)
    noise = noise_of(trained("16 choices").server.theta)
    few = Observations(*(t[:8] for t in seen))
    laplace.infer(few, prior, noise)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak so far is forgotten
    before, first = peak_memory(), seconds(lambda: laplace.infer(seen, prior, noise))
    taken = peak_memory() - before
    again = statistics.median(seconds(lambda: laplace.infer(seen, prior, noise)) for _ in range(3))
    q = laplace.infer(seen, prior, noise)
    result = sum(t.nelement() * t.element_size() for t in q) / 2**20
    return size._asdict() | {"seconds": min(first, again), "mib": 1024 * taken, "result_mib": result}


def in_own_process(case: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", case, "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def round_memory(method: str, name: str, people: int) -> dict[str, Any]:
    """Peak MiB of a process that runs a round; the selector's short training, which comes first, takes less."""
    run = Training(method, name, people).round()
    run()
    return {"mib": 1024 * peak_memory()}


# Report --------------------------------------------------------------------------------------------------------------


def measure(sizes: list[int], repeats: int, memory: bool) -> dict[str, Any]:
    """Everything, as one JSON-ready mapping."""
    rate, stream, found = engine.gemm_rate(FEATURES), engine.bandwidth(), []
    for name in WORLDS:
        for people in sizes:
            row = compare(name, people, repeats)
            rate, stream = max(rate, engine.gemm_rate(FEATURES)), max(stream, engine.bandwidth())
            if memory:
                row["mib"] = {m: in_own_process(f"round,{m},{name},{people}")["mib"] for m in METHODS}
            found.append(row)
            print(f"{name}, {people} people: {row['ratio']:.2f}x", file=sys.stderr, flush=True)
    for row in found:
        row["roofline"] = line = least(row["world"], row["people"])
        line["seconds"] = line["operations"] / rate + line["bytes"] / stream
        row["roofline_share"] = line["seconds"] / row["seconds"]["fedvpa-laplace"]
    one, many = alone(2000), batch(9)
    cases = [Size()._replace(**{field: v}) for field, values in GROWTH for v in values] if memory else []
    grown = {size: in_own_process(",".join(["infer", *map(str, size)])) for size in dict.fromkeys(cases)}
    machine = {"gemm_rate": rate, "bandwidth": stream}
    result = {"machine": machine, "environment": environment(), "rounds": found, "alone_ms": one, "per_second": many}
    components, dim = trained("16 choices").server.centroids.shape
    return result | {
        "components": components,
        "dim": dim,
        "batch": BATCH,
        "growth": [{"of": field} | grown[Size()._replace(**{field: v})] for field, vs in GROWTH for v in vs if memory],
        "targets": targets(found, one, many),
    }


def targets(found: list[dict[str, Any]], one: float, many: float) -> list[dict[str, Any]]:
    """What was aimed at, what was reached."""
    rows = [
        {"name": f"a round of fedvpa-laplace against fedvpa-gp's, {r['people']} people, {r['world']}", "target": RATIO}
        | {"value": r["ratio"], "met": r["ratio"] >= RATIO}
        for r in found
    ]
    rows.append({"name": "one person's posterior, ms", "target": ALONE_MS, "value": one, "met": one <= ALONE_MS})
    name = f"people per second in a batch of {BATCH}"
    rows.append({"name": name, "target": PER_SECOND, "value": many, "met": many >= PER_SECOND})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10,50,200,1000", help="sampled people (default 10,50,200,1000)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each method (default 5)")
    parser.add_argument("--threads", type=int, help="threads (default: torch's)")
    parser.add_argument("--no-memory", action="store_true", help="leave out memory and growth")
    parser.add_argument("--page", type=Path, help="write the tables to this file")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.case:
        kind, *rest = args.case.split(",")
        found = round_memory(*rest[:2], int(rest[2])) if kind == "round" else growth(Size(*map(int, rest)))
        print(json.dumps(found))
        return
    result = measure([int(v) for v in args.sizes.split(",")], args.repeats, not args.no_memory)
    show(result)
    if args.page:
        args.page.write_text(page(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
