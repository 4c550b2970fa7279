"""docs/align.md from a finished alignment.

python benchmarks/align_page.py --keep runs/aligned   # its figures and sample answers into docs/results/
python benchmarks/align_page.py                       # the page again, from what is kept
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fedvpa.evaluation.result_files import write_text
from fedvpa.reporting import alignment_page

ROOT = Path(__file__).parents[1]
KEPT, PAGE, TEXT = ROOT / "docs/results/alignment.json", ROOT / "docs/align.md", ROOT / "benchmarks/align.md.in"
FIGURE = ROOT / "docs/results/alignment-blend.svg"
ASKED = "How do I boil an egg?"
NOT_YET = "*Not yet run.*"


def keep(folder: Path) -> dict[str, Any]:
    """What the page needs of an alignment, with an answer under each prototype, and the base model's."""
    from fedvpa.alignment.policy import PersonalizedPolicy
    from fedvpa.apps.aligning import read_alignment

    result = read_alignment(folder)
    policy = PersonalizedPolicy.from_pretrained(folder)
    samples = {f"prototype {k}": policy.generate(ASKED, prototype=k) for k in range(len(policy.selector.centres))}
    result["samples"] = {"base model": policy.generate(ASKED, base=True), **samples}
    for latent in result["labels"]["latents"]:
        latent.pop("z")
    return result


def labels(result: dict[str, Any]) -> str:
    found, data = result["labels"], result["data"]
    return (
        f"Here: {data['training_prompts']} prompts with {data['candidates']} candidates each, "
        f"{data['capped']:.1%} of them cut at {data['max_new_tokens']} tokens; {found['pairs']} pairs from "
        f"{len(found['latents'])} latents, and {found['conflict_share']:.1%} of the labels of two latents conflict."
    )


def time(result: dict[str, Any]) -> str:
    rows = [f"| {name} | {p['seconds']:.0f} | {p['attempts']} |" for name, p in result["phases"].items()]
    e = result["environment"]
    peak = f"at most {result['peak_gib']['memory']:.1f} GiB"
    where = f"On {e['processor']} ({e['cores']} cores, {e['threads']} threads), {peak}, commit {e['commit']}."
    return "\n".join(["| phase | seconds | attempts |", "| --- | --- | --- |", *rows, "", where])


def samples(result: dict[str, Any]) -> str:
    parts = [
        f"*{who}*\n\n" + "\n".join(f"> {line}" for line in text.splitlines()) for who, text in result["samples"].items()
    ]
    return f"“{ASKED}” under each prototype, with the same random numbers (`fedvpa generate`):\n\n" + "\n\n".join(parts)


def page(result: dict[str, Any] | None) -> str:
    text = TEXT.read_text(encoding="utf-8")
    filled = dict.fromkeys(("labels", "time", "table", "figure", "samples"), NOT_YET)
    if result is not None:
        figure = alignment_page.blend_figure(result)
        if figure is not None:
            write_text(FIGURE, figure)
        shown = f"![A criterion between two prototypes](results/{FIGURE.name})" if figure is not None else ""
        filled = {
            "labels": labels(result),
            "time": time(result),
            "table": alignment_page.markdown(result),
            "figure": shown,
            "samples": samples(result),
        }
    for key, value in filled.items():
        text = text.replace("{{" + key + "}}", value)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="a folder of `fedvpa align`")
    folder = parser.parse_args().keep
    if folder is not None:
        write_text(KEPT, json.dumps(keep(folder), indent=1, ensure_ascii=False) + "\n")
    write_text(PAGE, page(json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else None))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
