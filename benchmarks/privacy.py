"""epsilon against accuracy and attack advantage, and docs/privacy.md from what was measured; no number is typed.

python benchmarks/privacy.py --out out/privacy --seeds 5            # both tables; finished cells are never run again
python benchmarks/privacy.py --out out/privacy --seeds 5 --keep     # then writes docs/results/privacy.json as well
python benchmarks/privacy.py --out out/privacy --parts why --seeds 2 --keep   # why two attacks got stronger
python benchmarks/privacy.py                                        # writes docs/privacy.md again from that file
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedvpa.apps.runs import environment
from fedvpa.config import PrivacyConfig, load_config
from fedvpa.evaluation.attacks import Outcome, Watch, interval, run_attacks
from fedvpa.evaluation.experiment import prepare, run_method
from fedvpa.evaluation.result_files import plain, write_text
from fedvpa.federation.privacy import account

ROOT = Path(__file__).parent.parent
KEPT, PAGE, TEXT = ROOT / "docs/results/privacy.json", ROOT / "docs/privacy.md", ROOT / "benchmarks/privacy.md.in"
METHOD = "fedvpa-gp"
CLIP = {"clip": 0.5, "posterior_clip": 4.0, "moments_clip": 120.0}
STILL = {"untrained", "clipped, no learning"}
"""Levels in which the server takes no step: the selector stays as it starts."""
LEVELS: dict[str, dict[str, float]] = {
    "untrained": {},
    "clipped, no learning": CLIP,
    "off": {},
    "clipped, no noise": CLIP,
    "noise on theta alone": {**CLIP, "noise": 0.2},
    "noise on posteriors alone": {**CLIP, "posterior_noise": 0.2},
    "noise on moments alone": {**CLIP, "moments_noise": 3.0},
    **{
        f"noise {n:g}": {**CLIP, "noise": n, "posterior_noise": n, "moments_noise": m}
        for n, m in ((0.01, 0.3), (0.05, 1.0), (0.2, 3.0), (1.0, 10.0), (5.0, 20.0))
    },
}
PARTS: dict[str, dict[str, Any]] = {
    "small": {
        "overrides": ["federation.rounds=60", "evaluation.every=60"],
        "levels": [level for level in LEVELS if level != "clipped, no learning"], "attacks": True,
    },
    "why": {
        "overrides": ["federation.rounds=60", "evaluation.every=60"],
        "levels": ["clipped, no noise", "noise on theta alone", "clipped, no learning"], "attacks": True,
    },
    "large": {
        "overrides": [
            "federation.rounds=60", "evaluation.every=60", "federation.clients=1000",
            "federation.sampled_clients=100",
        ],
        "levels": ["untrained", "off", "noise 0.05", "noise 0.2", "noise 1", "noise 5"],
        "attacks": False,
    },
}  # fmt: skip


def run_cell(config_path: str, part: str, level: str, seed: int) -> dict[str, Any]:
    """One training under one level of noise, its accuracy, epsilon and every attack's hits."""
    given = [f"privacy.{k}={v}" for k, v in LEVELS[level].items()]
    given += ["federation.server_learning_rate=1e-12"] if level in STILL else []
    # What the context alone gives.
    given += ["federation.rounds=1"] if level == "untrained" else []
    attacked = PARTS[part]["attacks"] and level != "untrained"
    config = load_config(config_path, [*PARTS[part]["overrides"], *given, f"seed={seed}", f"method.name={METHOD}"])
    began = time.perf_counter()
    prepared, watch = prepare(config), Watch(config.federation.rounds)
    run = run_method(prepared, METHOD, on_round=watch if attacked else None)
    size = config.federation.context_pairs
    row = next(r for r in run.rows if r["default"] and r["population"] == "unseen" and r["context_size"] == size)
    found = run_attacks(run.method, prepared, watch.states) if attacked else []
    return {
        "config": config_path, "part": part, "level": level, "seed": seed, "accuracy": row["accuracy"],
        "purity": row["cluster_purity"], "epsilon": row["epsilon"], "clients": config.federation.clients,
        "sampled": config.federation.sampled_clients, "rounds": config.federation.rounds,
        "seconds": time.perf_counter() - began, "environment": environment(),
        "attacks": [o._asdict() for o in found],
    }  # fmt: skip


def cells(out: Path, config_path: str, parts: Sequence[str], seeds: int) -> Iterator[dict[str, Any]]:
    """Every cell, from its file where it was run before."""
    out.mkdir(parents=True, exist_ok=True)
    for part in parts:
        for seed in range(seeds):
            for level in PARTS[part]["levels"]:
                path = out / f"{Path(config_path).stem}-{part}-{level.replace(' ', '_').replace(',', '')}-{seed}.json"
                if not path.is_file():
                    cell = run_cell(config_path, part, level, seed)
                    write_text(path, json.dumps(plain(cell)) + "\n")
                    print(f"{path.stem}: {cell['accuracy']:.3f}, epsilon {cell['epsilon']}, {cell['seconds']:.0f} s")
                yield json.loads(path.read_text())


def summarise(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per part and level the means over seeds, with intervals for the attacks."""
    parts: dict[str, Any] = {}
    for part in dict.fromkeys(c["part"] for c in found):
        rows = []
        for level in dict.fromkeys(c["level"] for c in found if c["part"] == part):
            mine = [c for c in found if c["part"] == part and c["level"] == level]
            accuracy = np.array([c["accuracy"] for c in mine])
            attacks = {}
            for k, one in enumerate(mine[0]["attacks"]):
                outcomes = [
                    Outcome(**{**c["attacks"][k], "hits": tuple(map(torch.tensor, c["attacks"][k]["hits"]))})
                    for c in mine
                ]
                attacks["/".join((one["attack"], one["view"], one["signal"]))] = interval(outcomes)
            rows.append({
                "level": level, "epsilon": mine[0]["epsilon"], "accuracy": accuracy.mean(), "seeds": len(mine),
                "spread": accuracy.std(ddof=1) if len(mine) > 1 else None,
                "purity": np.mean([c["purity"] for c in mine]), "attacks": attacks,
            })  # fmt: skip
        head = {k: found[-1][k] for k in ("config", "environment")}
        first = next(c for c in found if c["part"] == part and c["level"] != "untrained")
        parts[part] = {**head, **{k: first[k] for k in ("clients", "sampled", "rounds")}, "rows": rows}
    return parts


def page(kept: dict[str, Any]) -> str:
    """docs/privacy.md: the text with its tables."""
    parts = {"small": "", "large": "", **{name: _table(part) for name, part in kept.items() if name != "why"}}
    parts["why"] = _why_table(kept["why"]) if "why" in kept else ""
    environment = kept["small"]["environment"]
    hardware = f"commit {environment['commit']}, {environment['processor']}, torch {environment['torch']}"
    text = TEXT.read_text()
    for key, value in {**parts, "attacks": _attack_table(kept["small"]), "scale": _scale(), "made": hardware}.items():
        text = text.replace("{{" + key + "}}", value).replace("\n\n\n", "\n\n")
    return text


def _epsilon(level: str, value: float | None) -> str:
    return (
        "–"
        if level in ("off", "untrained")
        else "∞"
        if value is None
        else f"{value:,.3g}"
        if value < 1000
        else f"{value:,.0f}"
    )


def _table(part: dict[str, Any]) -> str:
    lines = [
        f"`{Path(part['config']).name}`, {part['clients']} clients, {part['sampled']} sampled, "
        f"{part['rounds']} rounds.",
        "",
        "| level | sigma: theta / posterior / moments | epsilon | accuracy (unseen) | purity | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in part["rows"]:
        level = LEVELS[r["level"]]
        noises = " / ".join(f"{level.get(k, 0):g}" for k in ("noise", "posterior_noise", "moments_noise"))
        spread = "" if r["spread"] is None else f" ± {r['spread']:.3f}"
        lines.append(
            f"| {r['level']} | {noises} | {_epsilon(r['level'], r['epsilon'])} | {r['accuracy']:.3f}{spread} "
            f"| {r['purity']:.2f} | {r['seeds']} |"
        )
    return "\n".join(lines)


def _attack_table(part: dict[str, Any]) -> str:
    rows = [r for r in part["rows"] if r["attacks"]]
    lines = ["| attack / view / signal | " + " | ".join(r["level"] for r in rows) + " |"]
    lines.append("| --- |" + " --- |" * len(rows))
    for name in rows[0]["attacks"]:
        shown = [_interval(r["attacks"][name]) for r in rows]
        lines.append(f"| {name.replace('/', ' / ')} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _why_table(part: dict[str, Any]) -> str:
    """The attacks that got stronger under noise on theta alone, beside a training that learns nothing."""
    names = ("membership/server/theta", "membership/peer/posterior")
    lines = ["| level | accuracy (unseen) | " + " | ".join(n.replace("/", " / ") for n in names) + " |"]
    lines.append("| --- |" + " --- |" * (1 + len(names)))
    for r in part["rows"]:
        shown = [_interval(r["attacks"][n]) for n in names]
        lines.append(f"| {r['level']} | {r['accuracy']:.3f} | {' | '.join(shown)} |")
    head = part["environment"]
    lines += ["", f"(`--parts why --seeds {part['rows'][0]['seeds']}`; commit {head['commit']}, {head['processor']}.)"]
    return "\n".join(lines)


def _interval(value: Sequence[float]) -> str:
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"


def _scale() -> str:
    """epsilon of the account alone, against the number of clients."""
    lines = [
        "| clients | sampled | rounds | sigma 0.5 | sigma 1 | sigma 2 | sigma 5 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for clients, sampled, rounds in ((100, 10, 300), (1000, 10, 300), (1000, 100, 300), (10_000, 100, 200)):
        found = []
        for s in (0.5, 1, 2, 5):
            p = PrivacyConfig(clip=1, noise=s, posterior_clip=1, posterior_noise=s, moments_clip=1, moments_noise=10)
            found.append(
                f"{account(p, clients, sampled, rounds, True, True):.3g} "
                f"({account(p, clients, sampled, rounds, False, False):.3g})"
            )
        lines.append(f"| {clients} | {sampled} | {rounds} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/synthetic.yaml")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", default="small,large")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="write docs/results/privacy.json from these cells")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.out is not None:
        summary = summarise(list(cells(args.out, args.config, args.parts.split(","), args.seeds)))
        if args.keep:
            old = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
            write_text(KEPT, json.dumps(plain({**old, **summary}), indent=1) + "\n")
    if KEPT.is_file():
        write_text(PAGE, page(json.loads(KEPT.read_text())))
        print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
