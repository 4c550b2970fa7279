"""Writes docs/results.md from the tables in docs/results/, so that no figure there is typed by hand.

    python benchmarks/results_page.py --keep hh-attributes-4 out/hh4   # copies a finished comparison's tables
    python benchmarks/results_page.py                                   # writes the page again (`make docs` does)

Each table names the command that made it; the file beside it holds seeds, commit and environment.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from fedvpa.evaluation.result_files import read_results
from fedvpa.reporting.tables import plain_tables

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "docs" / "results"
ALL = "fedvpa-gp,fedvpl,fedvpl+prior,fedvpl+ortho,fedbt,local,central-vpl,oracle,oracle-clients"
EXPERIMENTS = {
    "synthetic": "make demo",
    "hh-attributes-2": "fedvpa compare configs/hh-attributes-2.yaml "
    "--methods fedvpa-gp,fedvpl,fedbt,local,oracle --seeds 5 --out DIR",
    "hh-attributes-4": "fedvpa compare configs/hh-attributes-4.yaml "
    "--methods fedvpa-gp,fedvpl,fedbt,local,oracle --seeds 5 --out DIR",
    "hh-attributes-4-beta-0.1": "fedvpa compare configs/hh-attributes-4.yaml method.beta=0.1 "
    "--methods fedvpa-gp --seeds 5 --out DIR",
    "hh-objectives": f"fedvpa compare configs/hh-objectives.yaml --methods {ALL} --seeds 5 --out DIR",
    "hh-subsets": f"fedvpa compare configs/hh-subsets.yaml --methods {ALL} --seeds 5 --out DIR",
}
REMARKS = {
    "hh-objectives": "With a backbone of 135M parameters the ceilings of these labels are about 0.6.",
    "hh-subsets": "The two groups' prompts differ in topic, so separated latents prove little here. With a backbone of "
    "135M parameters the ceilings of these labels are about 0.6.",
}


def keep(name: str, run: Path) -> None:
    """Copies the tables of a comparison, with what is needed to trace them."""
    results = read_results(run / "results.json")
    config = yaml.safe_load((run / "config.yaml").read_text())
    kept = {
        "command": EXPERIMENTS[name],
        "environment": results["environment"],
        "notes": results["notes"],
        "switching": _switching(results["switching"]),
        **plain_tables(results, config["federation"]["context_pairs"]),
    }
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def _switching(rows: list[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["method"], []).append(row["accuracy"])
    return {method: sum(v) / len(v) for method, v in found.items()}


def _number(value: Any, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _interval(row: dict[str, Any], population: str) -> str:
    low, high = row[f"{population}_low"], row[f"{population}_high"]
    inside = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return _number(row[population]) + inside


def section(name: str, kept: dict[str, Any]) -> str:
    size, env = kept["context_size"], kept["environment"]
    lines = [f"## {name}", "", f"`{kept['command']}`", ""]
    if name in REMARKS:
        lines += [REMARKS[name], ""]
    lines += [
        f"{kept['main'][0]['seeds']} seed(s), {size} context pairs, default inference chosen on validation clients; "
        f"commit {str(env.get('commit'))[:12]}, {env.get('cores', '?')} cores. "
        f"File: [{name}.json](results/{name}.json).",
        "",
        "| method | inference | seen | unseen | conflicting pairs | worst group | switch gap | purity |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in kept["main"]:
        cells = [
            row["method"],
            row["inference"],
            _interval(row, "seen"),
            _interval(row, "unseen"),
            *(_number(row.get(k)) for k in ("conflict", "worst_group", "switch_gap", "cluster_purity")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    pairs = [row for row in kept["paired"] if row["population"] == "unseen"]
    if pairs:
        lines += ["", "Paired differences to fedvpa-gp, unseen users:", ""]
        lines += ["| method | difference | 95 % interval | p (Holm) |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {r['method']} | {r['difference']:+.3f} "
            f"| [{r['ci_low']:+.3f}, {r['ci_high']:+.3f}] | {r['p_holm']:.3f} |"
            for r in pairs
        ]
    if kept["switching"]:
        shown = ", ".join(f"{m} {v:.3f}" for m, v in kept["switching"].items())
        lines += ["", f"Switching test (the same pairs with opposite labels), accuracy: {shown}."]
    lines += ["", *(f"* {note}" for note in kept["notes"]), ""]
    return "\n".join(lines)


def page() -> str:
    files = {name: KEPT / f"{name}.json" for name in EXPERIMENTS}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    head = (
        "# Results\n\n<!-- Generated by `python benchmarks/results_page.py`; do not edit. -->\n\n"
        "Accuracy is the mean over users of the share of query pairs predicted as the user labelled them;\n"
        "queries come from prompts that no training pair has. Intervals are 95 % bootstrap intervals over\n"
        "seeds and test pairs; differences are paired on the same seeds, splits and pairs. The switch gap is\n"
        "accuracy with the own latent minus accuracy with one inferred from a user of the opposite group.\n"
        "Metrics without a population are those of unseen users.\n"
    )
    return "\n".join([head, *(section(name, kept) for name, kept in found.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--keep", nargs=2, metavar=("NAME", "RUN"), help="copy the tables of a finished comparison first"
    )
    args = parser.parse_args()
    if args.keep:
        keep(args.keep[0], Path(args.keep[1]))
    (ROOT / "docs" / "results.md").write_text(page())


if __name__ == "__main__":
    main()
