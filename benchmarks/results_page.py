"""Writes docs/benchmarks.md from docs/studies/ and docs/results/, so that no number there is typed by hand.

    python benchmarks/results_page.py --keep-study out/studies/01-main   # takes over a finished study
    python benchmarks/results_page.py --keep hh-attributes-4 out/hh4     # copies a finished comparison's tables
    python benchmarks/results_page.py                                    # writes the page again (`make docs` does)
    python benchmarks/results_page.py --quick out/quick                  # the same page of a quick run, over there

Each table names the command that made it; the file beside it holds seeds, commit and environment.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedvpa.apps.studying import SUMMARY
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import read_results, write_text
from fedvpa.evaluation.study_schema import Study, load_study
from fedvpa.reporting.study_page import Part, page
from fedvpa.reporting.study_plots import study_figure
from fedvpa.reporting.study_tables import markdown
from fedvpa.reporting.tables import plain_tables

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
MARKS = ("<!-- main table, written by benchmarks/results_page.py -->", "<!-- end of the main table -->")
"""Around what is generated in the README."""
KEPT = DOCS / "results"
STUDIES = ROOT / "configs" / "studies"
REMARK = "[research.md](research.md) says what was tried, and where test data was seen."
REPLACED_BY = "01-main"
"""The study that shows what the single comparisons show; once it is kept, they are left out."""
NOT_REPLACED = ("hh-attributes-4-beta-0.1",)
ALL = "fedvpa-gp,fedvpl,fedvpl+prior,fedvpl+ortho,fedbt,local,central-vpl,oracle,oracle-clients"
EXPERIMENTS = {
    "synthetic": "make demo-synthetic",
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
        f"commit {env.get('commit')}, {env.get('cores', '?')} cores. "
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


def comparisons() -> str:
    """The single comparisons (`fedvpa compare`) that no kept study replaces."""
    replaced = (DOCS / "studies" / REPLACED_BY / SUMMARY).exists()
    names = NOT_REPLACED if replaced else tuple(EXPERIMENTS)
    files = {name: KEPT / f"{name}.json" for name in names}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    head = "# Single comparisons\n\nMade with `fedvpa compare`, before the studies; metrics without a population are\n"
    head += "those of unseen users.\n"
    return "\n".join([head, *(section(name, kept) for name, kept in found.items())]) if found else ""


def keep_study(run: Path) -> None:
    """Copies a study's summary into the documentation.

    Raises:
        UserError: no finished study there, a quick one, or one whose study file is gone.
    """
    if not (run / SUMMARY).is_file():
        raise UserError(f"no finished study (no {SUMMARY})", "run `fedvpa study` first", file=run)
    summary = json.loads((run / SUMMARY).read_text())
    if summary["quick"]:
        raise UserError("is a quick study", "only full ones are kept", file=run)
    file = next((f for f in study_files() if load_study(f).name == summary["study"]["name"]), None)
    if file is None:
        raise UserError(f"no file of study {summary['study']['name']!r} in configs/studies", file=run)
    plain, command = f"fedvpa study {file.relative_to(ROOT)} --out DIR", summary["provenance"]["command"]
    if command != plain:
        raise UserError(f"was made by `{command}`", f"only what `{plain}` makes is kept", file=run)
    fits(load_study(file), summary, run / SUMMARY)
    kept = DOCS / "studies" / file.stem
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    shutil.copy(run / SUMMARY, kept / SUMMARY)


def draw_kept() -> None:
    """Draws the kept studies' figures from their summaries, so that all look as the code of today draws them."""
    for file in study_files():
        kept = DOCS / "studies" / file.stem
        if (kept / SUMMARY).is_file():
            study = load_study(file)
            for figure in json.loads((kept / SUMMARY).read_text())["figures"]:
                if figure["points"]:
                    write_text(kept / f"{figure['name']}.svg", study_figure(figure, study.names, study.name))


def fits(study: Study, summary: Mapping[str, Any], file: Path) -> None:
    """Refuses a summary that does not show what its study's file asks for.

    Raises:
        UserError: other claims, tables or figures.
    """
    wanted = study.model_dump(mode="json")
    for kind, key in (("checks", "says"), ("tables", "title"), ("figures", "name")):
        if [x[key] for x in wanted[kind]] != [x[key] for x in summary[kind]]:
            remedy = "run `fedvpa study` again: finished cells are never run twice"
            raise UserError(f"its {kind} are not those of the study's file", remedy, file=file)


def fill_readme(text: str, parts: Sequence[Part]) -> str:
    """The README with the main study's first table, and the command that made it, between its two marks.

    Raises:
        UserError: a mark is missing.
    """
    for mark in MARKS:
        if mark not in text:
            raise UserError(f"has no line {mark!r}", "put both marks back", file=README)
    head, begin, rest = text.partition(MARKS[0])
    _, end, tail = rest.partition(MARKS[1])
    main = next(part for part in parts if part.study.name == "main")
    shown = f"Not yet run: `{main.command}`"
    if main.summary is not None:
        table = main.summary["tables"][0]
        kept = f"{main.folder}/{SUMMARY}"
        shown = f"{table['title']}; accuracy and 95 % interval, {main.study.seeds} seeds.\n"
        shown += f"`{main.command}`, [summary.json](docs/{kept})\n\n{markdown(table, main.study.names)}"
    return f"{head}{begin}\n{shown}\n{end}{tail}"


def study_files() -> list[Path]:
    return sorted(STUDIES.glob("*.yaml"))


def parts(folder: Callable[[str], Path], link: str, options: str) -> list[Part]:
    """The studies with what is there of them.

    Args:
        folder: where the study of that file name was written; link: the same, relative to the page.
        options: of the command that is shown.
    """
    found = []
    for file in study_files():
        summary = folder(file.stem) / SUMMARY
        tree = json.loads(summary.read_text()) if summary.is_file() else None
        source = str(file.relative_to(ROOT))
        if tree is not None:
            fits(load_study(file), tree, summary)
        command = f"fedvpa study {source}{options} --out DIR"
        found.append(Part(load_study(file), source, tree, link.format(file.stem), command))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--keep", nargs=2, metavar=("NAME", "RUN"), help="copy the tables of a finished comparison first"
    )
    parser.add_argument("--keep-study", nargs="+", type=Path, default=[], metavar="DIR", help="copy finished studies")
    parser.add_argument("--quick", type=Path, metavar="DIR", help="write the page of quick studies into their folder")
    args = parser.parse_args()
    by = "python benchmarks/results_page.py"
    if args.quick:
        quick = parts(lambda name: args.quick / name, "{}", " --quick")
        (args.quick / "benchmarks.md").write_text(page(quick, f"{by} --quick DIR"))
        return
    if args.keep:
        keep(args.keep[0], Path(args.keep[1]))
    for run in args.keep_study:
        keep_study(run)
    draw_kept()
    full = parts(lambda name: DOCS / "studies" / name, "studies/{}", "")
    write_text(DOCS / "benchmarks.md", page(full, by, REMARK, comparisons()))
    write_text(README, fill_readme(README.read_text(encoding="utf-8"), full))


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        sys.exit(f"error: {e}")
