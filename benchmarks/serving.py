"""`fedvpa serve` under load: 64 clients, each of which sends its next request when its last one is answered.

Uncached: every text is new; the service's throughput against `Backbone.encode_pairs` on the same pairs, and the 99th
percentile of the latency against 64 / throughput, which is the mean latency of 64 such clients. Cached: every text is
known; throughput against the same service with --batch 1, which answers one request at a time (a second process with
the same features; the two take turns). The machine alone: the same percentile over mean of a piece of plain Python that
takes as long as those 64 cached answers, repeated while nothing else runs; a machine whose own pauses are longer than
the target allows cannot show that the service meets it. One client: an ordinary blocking client (http.client) asks for
one cached pair after the other, over one kept connection and over a new one each time, from a service on asyncio's own
loop, which is what `pip install fedvpa[serve]` gives; a kept connection must not be slower than a new one.
The services are processes of their own; the selector is
untrained, as speed does not depend on its weights. A request is one pair of HH-RLHF helpful-base, for one of two
prototypes. A 429 is counted and sent again after the time that the service names; any other answer but 200 is an error.

    FEDVPA_HH_RLHF=../shared/data/hh-rlhf python benchmarks/serving.py --page docs/serving.md
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from features import link_models, read_pairs
from fedvpa.apps.runs import environment
from fedvpa.backbone import Backbone
from fedvpa.backbone.models import cache_dir
from fedvpa.config import BackboneConfig, ExperimentConfig
from fedvpa.preferences.schema import Pair
from rewards import CLUSTERS, make_selector

CLIENTS = 64
OFFLINE, BATCHING, TAIL, KEPT = 0.9, 3.0, 1.5, 1.2
KNOWN = 64
"""Pairs of the cached phase."""
ALONE = 20.0
"""Seconds for which the machine alone is looked at."""


@dataclass
class Load:
    """What a crowd of clients saw."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def throughput(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.latencies, n=100, method="inclusive")[98]

    def tail(self, clients: int) -> float:
        """The 99th percentile against the mean latency of so many clients, which is clients / throughput."""
        return self.p99 * self.throughput / clients

    def __add__(self, other: Load) -> Load:
        return Load(
            self.seconds + other.seconds,
            self.latencies + other.latencies,
            self.refused + other.refused,
            self.errors + other.errors,
        )


def request(pair: Pair, number: int) -> bytes:
    """A request as it goes over the wire; the clients must not be what is measured."""
    prompt = [m._asdict() for m in pair.prompt]
    user = {"prototype": number % CLUSTERS}
    body = json.dumps({"pairs": [{"prompt": prompt, "a": pair.a, "b": pair.b}], "user": user}).encode()
    head = "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, float, bytes]:
    """Status, seconds to wait, and body of an answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = re.search(rb"content-length: (\d+)", head)
    body = await reader.readexactly(int(length[1])) if length else b""
    again = re.search(rb"retry-after: (\d+)", head)
    return int(head[9:12]), float(again[1]) if again else 1.0, body


async def crowd(port: int, requests: Sequence[bytes], clients: int) -> Load:
    """Sends every request once, from so many clients; their connections are there before the clock starts."""
    load, left = Load(), iter(requests)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for sent in left:
            began = time.perf_counter()
            while True:
                writer.write(sent)
                status, pause, body = await answer(reader)
                if status != 429:
                    break
                load.refused += 1
                await asyncio.sleep(pause)
                began = time.perf_counter()
            if status == 200:
                load.latencies.append(time.perf_counter() - began)
            else:
                load.errors.append(f"{status} {body[:200]!r}")
        writer.close()

    connections = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(clients)))
    began = time.perf_counter()
    await asyncio.gather(*(client(*connection) for connection in connections))
    load.seconds = time.perf_counter() - began
    return load


def one_client(port: int, sent: Sequence[bytes], kept: bool) -> Load:
    """One blocking client, one request after the other, over one connection or a new one for each."""
    load, connection = Load(), http.client.HTTPConnection("127.0.0.1", port)
    began = time.perf_counter()
    for whole in sent:
        body, start = whole.partition(b"\r\n\r\n")[2], time.perf_counter()
        connection.request("POST", "/v1/score", body, {"content-type": "application/json"})
        reply = connection.getresponse()
        text = reply.read()
        if not kept:
            connection.close()
        if reply.status == 200:
            load.latencies.append(time.perf_counter() - start)
        else:
            load.errors.append(f"{reply.status} {text[:200]!r}")
    load.seconds = time.perf_counter() - began
    connection.close()
    return load


WITHOUT_UVLOOP = "import sys; sys.modules['uvloop'] = None; from fedvpa.apps.cli import main; sys.exit(main())"
"""The command line on asyncio's own loop, also where uvloop is installed."""


@contextlib.contextmanager
def service(run: Path, *options: str, program: Sequence[str] = ("-m", "fedvpa.apps.cli")) -> Iterator[int]:
    """A service as a process; gives its port."""
    command = [sys.executable, *program, "serve", str(run), "--port", "0", "--timeout", "600", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stderr.readline())
        assert found, process.stderr.read()
        for _ in range(1200):
            with contextlib.suppress(httpx.ConnectError):
                if httpx.get(f"{found[0]}/readyz").status_code == 200:
                    break
            time.sleep(0.1)
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(60)


def offline(pairs: Sequence[Pair], models: Path) -> float:
    """Seconds of the plain extraction of pairs, into a fresh cache; loading the model is left out."""
    with tempfile.TemporaryDirectory() as fresh:
        link_models(models, Path(fresh))
        backbone = Backbone(BackboneConfig(), Path(fresh))
        backbone.encode_responses((), ["warm-up"])
        began = time.perf_counter()
        backbone.encode_pairs(pairs, progress=False)
        seconds = time.perf_counter() - began
        backbone.close()
    return seconds


def machine(piece: float, seconds: float = ALONE) -> float:
    """The 99th percentile over the mean of a piece of plain Python that takes about ``piece`` seconds."""

    def work(units: int) -> float:
        began = time.perf_counter()
        for _ in range(units):
            dict(zip(map(str, range(300)), ([i] for i in range(300)), strict=True))
        return time.perf_counter() - began

    unit = statistics.median(work(1) for _ in range(1000))
    units = max(1, round(piece / unit))
    times = [work(units) for _ in range(max(100, round(seconds / piece)))]
    return statistics.quantiles(times, n=100, method="inclusive")[98] / statistics.fmean(times)


def measure(count: int, repeats: int, clients: int, models: Path) -> dict[str, Any]:
    """All phases; offline runs before and after the service's, each over half of the same pairs."""
    pairs = read_pairs(count + KNOWN)
    pairs, known = pairs[:count], pairs[count:]
    with tempfile.TemporaryDirectory() as fresh:
        link_models(models, Path(fresh))
        run = Path(fresh) / "run"
        make_selector(Path(fresh)).save_pretrained(run)
        plain = offline(pairs[::2], models)
        with service(run) as batched, service(run, "--batch", "1") as single:
            uncached = asyncio.run(crowd(batched, [request(p, i) for i, p in enumerate(pairs)], clients))
            plain += offline(pairs[1::2], models)
            again = [request(known[i % KNOWN], i) for i in range(repeats * clients)]
            for port in (batched, single):  # both get to know the texts
                asyncio.run(crowd(port, [request(p, 0) for p in known], clients))
            cached, one_by_one = Load(), Load()
            for turn in range(4):
                if turn in (0, 3):
                    cached += asyncio.run(crowd(batched, again, clients))
                else:
                    one_by_one += asyncio.run(crowd(single, again, clients))
            alone = machine(clients / cached.throughput)
        with service(run, program=("-c", WITHOUT_UVLOOP)) as port:
            few = [request(p, 0) for p in known]
            asyncio.run(crowd(port, few, clients))
            anew, kept = one_client(port, few, kept=False), one_client(port, few, kept=True)
    loads = {"uncached": uncached, "cached": cached, "cached, one at a time": one_by_one}
    loads |= {"one client, new connections": anew, "one client, a kept connection": kept}
    errors = [e for load in loads.values() for e in load.errors]
    return {
        "clients": clients,
        "pairs": count,
        "offline": {"seconds": plain, "throughput": count / plain},
        "loads": {k: summary(load) for k, load in loads.items()},
        "machine": alone,
        "errors": errors,
        "targets": [
            *targets(uncached, cached, one_by_one, count / plain, len(errors), clients),
            at_most("serving: median on a kept connection against a new one", KEPT, slowdown(kept, anew)),
        ],
        "environment": environment(),
    }


def targets(
    uncached: Load, cached: Load, one_by_one: Load, plain: float, errors: int, clients: int
) -> list[dict[str, Any]]:
    """What is measured against what is wanted; plain: pairs per second of the offline extraction."""
    return [
        at_most("serving: answers that are neither 200 nor 429", 0, errors),
        at_least("serving: uncached texts against offline extraction", OFFLINE, uncached.throughput / plain),
        at_least("serving: cached texts against one at a time", BATCHING, cached.throughput / one_by_one.throughput),
        at_most("serving: p99 against clients / throughput, uncached", TAIL, uncached.tail(clients)),
        at_most("serving: p99 against clients / throughput, cached", TAIL, cached.tail(clients)),
    ]


def slowdown(kept: Load, anew: Load) -> float:
    """The median latency on a kept connection against that on new ones."""
    return statistics.median(kept.latencies) / statistics.median(anew.latencies)


def at_least(name: str, target: float, value: float) -> dict[str, Any]:
    return {"name": name, "target": target, "value": value, "met": value >= target}


def at_most(name: str, target: float, value: float) -> dict[str, Any]:
    return {"name": name, "target": target, "value": value, "met": value <= target}


def summary(load: Load) -> dict[str, Any]:
    return {
        "requests": len(load.latencies),
        "refused": load.refused,
        "seconds": load.seconds,
        "throughput": load.throughput,
        "mean": statistics.fmean(load.latencies),
        "p50": statistics.median(load.latencies),
        "p99": load.p99,
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows."""
    plain = result["offline"]
    found = [["offline extraction", str(result["pairs"]), f"{plain['throughput']:.1f}", "", "", "", ""]]
    for name, load in result["loads"].items():
        times = [f"{1000 * load[k]:.0f}" for k in ("mean", "p50", "p99")]
        found.append([name, str(load["requests"]), f"{load['throughput']:.1f}", *times, str(load["refused"])])
    return found


ALONE_SAYS = "The machine alone, p99 against mean of plain Python as long as a cached round: {:.2f}"
COLUMNS = ("", "requests", "pairs per second", "mean, ms", "p50, ms", "p99, ms", "429")


def show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"fedvpa serve, {result['clients']} clients, {result['environment']['threads']} thread(s)")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left")
    for row in rows(result):
        table.add_row(*row)
    console.print(table)
    for t in result["targets"]:
        console.print(f"{t['name']}: {t['value']:.2f} (target {t['target']}): {'met' if t['met'] else 'missed'}")
    console.print(ALONE_SAYS.format(result["machine"]))
    for e in result["errors"][:5]:
        console.print(e, markup=False)


def page(result: dict[str, Any]) -> str:
    machine = result["environment"]
    commit = str(machine.get("commit") or "unknown")[:12]
    lines = [
        "# The service under load",
        "",
        f"Written by `python benchmarks/serving.py --page docs/serving.md`, which says what is timed; {commit}, "
        f"{machine['processor']}, {machine['cores']} cores.",
        f"{result['clients']} clients, one pair of HH-RLHF per request, `smollm2-135m-instruct`, default settings.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "| --- |" + " ---: |" * (len(COLUMNS) - 1),
        *("| " + " | ".join(row) + " |" for row in rows(result)),
        "",
        "| | target | measured | |",
        "| --- | ---: | ---: | --- |",
    ]
    for t in result["targets"]:
        lines.append(f"| {t['name']} | {t['target']} | {t['value']:.2f} | {'met' if t['met'] else 'missed'} |")
    lines += ["", ALONE_SAYS.format(result["machine"]) + "."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=512, help="pairs whose texts are new (default 512)")
    parser.add_argument("--repeats", type=int, default=150, help="cached requests per client and turn (default 150)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"at a time (default {CLIENTS})")
    parser.add_argument("--page", type=Path, help="write the tables to this file")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    result = measure(args.pairs, args.repeats, args.clients, cache_dir(ExperimentConfig()) / "models")
    show(result)
    if args.page:
        args.page.write_text(page(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
