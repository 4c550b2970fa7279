"""What `make bench` calls: the engine, alone and against Flower's simulation, fedvpa-laplace, the features, many
clients, the reward, the service.

Moderate sizes; one table.

The engine is timed with one thread, in CPU time, which other load disturbs least; `--threads` changes it.

python benchmarks/run.py --json bench.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
EXTRACTION_TARGET = 2.3


def part(name: str, arguments: list[str]) -> dict[str, Any] | None:
    """Runs a benchmark in a process of its own (its peak memory is then its own) and reads its figures back.

    The benchmark prints its own tables. Returns None if it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        done = subprocess.run([sys.executable, str(HERE / name), *arguments, "--json", str(figures)])
        return json.loads(figures.read_text()) if done.returncode == 0 else None


def extraction_targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    name = f"feature extraction against a plain loop, {result['pairs']} pairs"
    ratio = result["ratio"]
    return [{"name": name, "target": EXTRACTION_TARGET, "value": ratio, "met": ratio >= EXTRACTION_TARGET}]


def show(targets: list[dict[str, Any]], failed: list[str]) -> None:
    table = Table(title="Targets")
    for column in ("", "target", "measured", ""):
        table.add_column(column, justify="right" if column else "left")
    for t in targets:
        table.add_row(t["name"], f"{t['target']:.2f}", f"{t['value']:.2f}", "met" if t["met"] else "missed")
    for name in failed:
        table.add_row(name, "", "", "did not run, see above")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10,50,200,1000", help="sampled clients (default 10,50,200,1000)")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each engine (default 2)")
    parser.add_argument("--pairs", type=int, default=48, help="pairs to encode (default 48)")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of the engine's and the reward's benchmark (default 1)"
    )
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    args = parser.parse_args()
    parts = {
        "rounds.py": part(
            "rounds.py", ["--sizes", args.sizes, "--repeats", str(args.repeats), "--threads", str(args.threads)]
        ),
        "laplace.py": part("laplace.py", ["--sizes", args.sizes]),
        "simulation.py": part("simulation.py", []),
        "features.py": part("features.py", ["--pairs", str(args.pairs)]),
        "scale.py": part("scale.py", []),
        "rewards.py": part("rewards.py", ["--prompts", "3", "--threads", str(args.threads)]),
        "serving.py": part("serving.py", ["--pairs", "256"]),
    }
    timed = ("rounds.py", "laplace.py", "simulation.py", "scale.py", "rewards.py", "serving.py")
    targets = [t for name in timed for t in (parts[name] or {}).get("targets", [])]
    targets += extraction_targets(parts["features.py"]) if parts["features.py"] else []
    failed = [name for name, result in parts.items() if result is None]
    show(targets, failed)
    if args.json:
        args.json.write_text(json.dumps({"targets": targets, "failed": failed, **parts}, indent=2) + "\n")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
