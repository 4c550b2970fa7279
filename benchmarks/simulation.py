"""Seconds per round of the vectorised engine against Flower's simulation: same method, clients, sampling and numbers.

For each size a federation of as many clients, all sampled in every round, each client a SuperNode of its own: Flower's
natural way. Both train `configs/synthetic.yaml` as a user would, `fedvpa train` in one process with one thread, and
`flwr run` with as many workers of one thread as there are cores; all parts of the method are on from the first round.
Time is that of a round as the server sees it, without evaluation: the median of all rounds but the first, in which both
load code (and Flower's workers the data). Ours trains before and after Flower's. That both did the same is checked on
the last round's loss. Other load on the machine disturbs rounds of milliseconds most; the page says how much there was.

    python benchmarks/simulation.py --sizes 10,50 --json simulation.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from fedvpa.apps.runs import environment
from fedvpa.evaluation.result_files import read_metrics

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {10: 20.0, 50: 20.0, 200: 5.0}
WARM_UP, TIMED = 1, 3
"""Rounds that are left out, and rounds that count."""
SECONDS_PER_CLIENT = 15
"""Patience with a round of Flower's, per client and worker."""
START = 300
"""Patience with starting."""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def settings(clients: int) -> list[str]:
    """What both engines train."""
    federation = {
        "clients": clients,
        "sampled_clients": clients,
        "unseen_clients": 4,
        "validation_clients": 4,
        "rounds": WARM_UP + TIMED,
    }
    rest = {"method.prior_start": 0, "method.ortho_start": 0, "evaluation.every": 100, "output.tensorboard": "false"}
    return [f"{k}={v}" for k, v in ({f"federation.{k}": v for k, v in federation.items()} | rest).items()]


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]


@contextlib.contextmanager
def flower(home: Path) -> Iterator[dict[str, str]]:
    """An environment in which `flwr run` starts a SuperLink of its own; whatever it started is ended afterwards."""
    ports = free_ports(2)
    try:
        yield {
            **os.environ,
            "FLWR_HOME": str(home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(ports[0]),
            "FLWR_LOCAL_CONTROL_API_PORT": str(ports[1]),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            **ONE_THREAD,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
    finally:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                if process.environ().get("FLWR_HOME") == str(home):
                    process.kill()


def simulate(experiment: Path, changes: Sequence[str], nodes: int, out: Path, home: Path, patience: float) -> None:
    """`flwr run .` until its report is there.

    Raises:
        RuntimeError: it ended or took longer than `patience` seconds; with the end of Flower's log.
    """
    config = f'experiment="{experiment}" out="{out}" settings="{" ".join(changes)}"'
    federation = f"num-supernodes={nodes} client-resources-num-cpus=1"
    command = ["flwr", "run", str(ROOT), "--run-config", config, "--federation-config", federation]
    with flower(home) as variables:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=START, check=False)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        end = time.monotonic() + patience
        while not (out / "report.html").exists():
            if time.monotonic() > end:
                raise RuntimeError((home / "local-superlink/superlink.log").read_text()[-4000:])
            time.sleep(0.5)


def vectorised(experiment: Path, changes: Sequence[str], out: Path) -> list[dict[str, Any]]:
    """A line of figures per round of `fedvpa train`."""
    train = [sys.executable, "-m", "fedvpa.apps.cli", "train", str(experiment), *changes, "--out", str(out)]
    subprocess.run(train, check=True, capture_output=True, text=True, env={**os.environ, **ONE_THREAD})
    return read_metrics(out / "metrics.jsonl")


def measure(clients: int, folder: Path) -> dict[str, Any]:
    """Both engines, one after the other."""
    experiment, changes = ROOT / "configs" / "synthetic.yaml", settings(clients)
    rounds = WARM_UP + TIMED
    patience = START + rounds * SECONDS_PER_CLIENT * clients / (os.cpu_count() or 1)
    before = vectorised(experiment, changes, folder / "before")
    simulate(experiment, changes, clients, folder / "flower", folder / "home", patience)
    theirs = read_metrics(folder / "flower" / "metrics.jsonl")
    ours = [before, vectorised(experiment, changes, folder / "after")]
    losses = [before[-1]["loss"], theirs[-1]["loss"]]
    if abs(losses[0] - losses[1]) > 1e-3 * abs(losses[0]):
        raise RuntimeError(f"the engines disagree: loss {losses[0]} and {losses[1]} after {rounds} rounds")
    mine, flowers = ([row["seconds"] for run in runs for row in run[WARM_UP:]] for runs in (ours, [theirs]))
    seconds = [statistics.median(mine), statistics.median(flowers)]
    return {
        "clients": clients,
        "vectorised": seconds[0],
        "flower": seconds[1],
        "ratio": seconds[1] / seconds[0],
        "all_vectorised": mine,
        "all_flower": flowers,
        "loss": losses,
    }


def show(rows: list[dict[str, Any]], console: Console) -> None:
    machine = environment()
    table = Table(title=f"Seconds per round, all clients sampled; {machine['processor']}, {os.cpu_count()} cores")
    for column in ("clients = SuperNodes", "vectorised", "Flower's simulation", "ratio"):
        table.add_column(column, justify="right")
    for r in rows:
        table.add_row(str(r["clients"]), f"{r['vectorised']:.3f}", f"{r['flower']:.2f}", f"{r['ratio']:.1f}")
    console.print(table)


def page(result: dict[str, Any]) -> str:
    """Markdown."""
    machine = result["environment"]
    lines = [
        "# The engine against Flower's simulation",
        "",
        "Written by `python benchmarks/simulation.py --page docs/simulation.md`, which says what is timed; "
        f"{machine['commit']}, {machine['processor']}, {result['cores']} cores, on which {result['load']:.1f} other "
        "processes were running.",
        f"`configs/synthetic.yaml`, `fedvpa-gp`, all clients sampled, {TIMED} rounds after {WARM_UP} of warm-up.",
        f"Ours: one process, one thread. Flower: one SuperNode per client, {result['cores']} workers of one thread.",
        "",
        "| clients = SuperNodes | vectorised, s per round | Flower's simulation, s per round | ratio | target |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in result["simulation"]:
        wanted = TARGETS.get(r["clients"], "")
        lines.append(f"| {r['clients']} | {r['vectorised']:.3f} | {r['flower']:.2f} | {r['ratio']:.1f} | {wanted} |")
    lines += [
        "",
        "Both end with the same loss. A node that holds many users trains them as one stack: a silo's SuperNode has",
        "the engine's speed, and only the messages come on top.",
    ]
    return "\n".join(lines) + "\n"


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for r in rows:
        wanted = TARGETS.get(r["clients"])
        if wanted is not None:
            name = f"engine against Flower's simulation, {r['clients']} clients"
            found.append({"name": name, "target": wanted, "value": r["ratio"], "met": r["ratio"] >= wanted})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10,50,200", help="clients, each a SuperNode (default 10,50,200)")
    parser.add_argument("--page", type=Path, help="write the table to this file")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    rows, console, machine, load = [], Console(), environment(), os.getloadavg()[0]
    for clients in map(int, args.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(clients, Path(folder)))
        print(f"{clients} clients: {rows[-1]['ratio']:.1f}x", file=sys.stderr, flush=True)
    show(rows, console)
    result = {"environment": machine, "cores": os.cpu_count(), "load": load, "simulation": rows}
    result["targets"] = targets(rows)
    for t in result["targets"]:
        console.print(f"{t['name']}: {t['value']:.1f} (target {t['target']}): {'met' if t['met'] else 'missed'}")
    if args.page:
        args.page.write_text(page(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
