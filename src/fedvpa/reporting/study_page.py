"""The benchmark page: what holds and what does not, and each study with its tables and figures, from summary files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedvpa.evaluation.claims import verdict
from fedvpa.evaluation.study_schema import Study
from fedvpa.reporting.study_tables import check_line, evidence, markdown

GROUPS = (
    ("holds", "hold"),
    ("unrefuted", "are not refuted"),
    ("partly", "hold only partly"),
    ("not", "do not hold"),
    ("open", "are neither shown nor refuted"),
    ("untested", "are not yet tested"),
)
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True)
class Part:
    """A study on the page.

    Attributes:
        study: its file; source: that file's path, as the reader would type it.
        summary: the content of its ``summary.json``; None where it was not run yet.
        folder: where the summary and the figures lie, relative to the page.
        command: what runs it.
    """

    study: Study
    source: str
    summary: Mapping[str, Any] | None
    folder: str
    command: str


def claims(parts: Sequence[Part], paper: bool) -> list[tuple[Mapping[str, Any], Part]]:
    """The checks of the paper's claims (or of ours), those of studies that were not run as untested."""
    found: list[tuple[Mapping[str, Any], Part]] = []
    for part in parts:
        if part.summary is None:
            empty: dict[str, Any] = {"tests": [], "missing": 0}
            checks: list[Mapping[str, Any]] = [{**c.model_dump(mode="json"), **empty} for c in part.study.checks]
        else:
            checks = part.summary["checks"]
        found += [(c, part) for c in checks if c["paper"] == paper]
    return found


def verdicts(parts: Sequence[Part], paper: bool) -> str:
    """One paragraph: which claims hold, which only partly, which do not, each with its numbers."""
    found = claims(parts, paper)
    sentences = []
    for kind, words in GROUPS:
        mine = [(c, part) for c, part in found if verdict(c) == kind]
        if mine and kind == "untested":
            studies = ", ".join(dict.fromkeys(_link(part) for _, part in mine))
            sentences.append(f"**{_count(len(mine)).capitalize()} {_conjugated(words, len(mine))}** ({studies}).")
        elif mine:
            each = "; ".join(f"{c['says']} ({evidence(c)}; {_link(part)})" for c, part in mine)
            sentences.append(f"**{_count(len(mine)).capitalize()} {_conjugated(words, len(mine))}**: {each}.")
    whose = "the paper's claims" if paper else "what this project claims beyond the paper"
    head = f"Of {whose}, {_count(len(found))} {'is' if len(found) == 1 else 'are'} put to a test here."
    return " ".join([head, *sentences])


def _link(part: Part) -> str:
    return f"[{part.study.name}](#{anchor(part.study.title)})"


def _count(n: int) -> str:
    return WORDS[n] if n < len(WORDS) else str(n)


def _conjugated(words: str, n: int) -> str:
    if n != 1:
        return words
    first, _, rest = words.partition(" ")
    return f"{ {'hold': 'holds', 'do': 'does', 'are': 'is'}[first] } {rest}".strip()


def anchor(title: str) -> str:
    """The anchor that a Markdown reader gives a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


def section(part: Part) -> str:
    """A study: claim, command, checks, tables, figures, provenance."""
    lines = [f"## {part.study.title}", "", f"*{part.study.claim.strip()}* Study file: `{part.source}`.", ""]
    if part.summary is None:
        return "\n".join([*lines, f"Not yet run. `{part.command}`", ""])
    summary = part.summary
    lines += [f"`{part.command}`", "", provenance(summary, f"{part.folder}/summary.json"), ""]
    lines += [f"* {check_line(c)}{' (the paper)' if c['paper'] else ''}" for c in summary["checks"]]
    names = summary["study"]["names"]
    for table in summary["tables"]:
        lines += ["", f"**{table['title']}**", "", markdown(table, names)]
    for figure in summary["figures"]:
        if figure["points"]:
            lines += ["", f"![{figure['title']}]({part.folder}/{figure['name']}.svg)"]
    notes = [f"* {note}" for note in summary["notes"]]
    return "\n".join([*lines, "", *notes, ""])


def provenance(summary: Mapping[str, Any], file: str) -> str:
    """Seeds, commits, hardware, dates, versions and the file, in a sentence each."""
    p, cells = summary["provenance"], summary["cells"]
    versions = ", ".join(f"{name} {'/'.join(v)}" for name, v in p["versions"].items())
    count = f"{cells['finished']} of {cells['planned']} cells"
    failed = f" (failed: {'; '.join(cells['failed'])})" if cells["failed"] else ""
    quick = "**The quick reduction, not a result.** " if summary["quick"] else ""
    dates = " to ".join(dict.fromkeys((p["dates"][0], p["dates"][-1])))
    seeds = ", ".join(str(s) for s in p["seeds"])
    known = [f for f in p.get("features", []) if f != "unknown"]
    features = f"features in {' and '.join(known)}; " if known else ""
    return (
        f"{quick}{count}{failed}, seeds {seeds}; {p['core_seconds'] / 3600:.1f} core hours "
        f"on {' / '.join(p['hardware'])} ({'/'.join(p['cores'])} cores), {dates}; "
        f"commit {', '.join(p['commits'])}; {features}{versions}. Numbers: [{file.rpartition('/')[2]}]({file})."
    )


PREFACE = """Every number on this page comes from the files that are linked beside it, and every verdict from a
rule: a claim names a quantity and the range in which it must lie; a test passes if the whole 95 % interval lies in
the range, and a difference must also be significant after Holm's correction over the claim's tests; a claim *holds* if
every test passes, *partly* if some do, does *not* if none passes and some fail, and is neither shown nor refuted if all
are open. A claim that something is *not* so ("nowhere worse") is *not refuted* while no test speaks against it.
Accuracy is the mean over users of the share of query pairs predicted as the user labelled them; queries come from
prompts that no training pair has. Intervals are 95 %: of accuracies by bootstrap over seeds and test pairs, of other
metrics Student's over seeds. Differences are paired on the same seeds, splits and pairs, and a star marks those
that are significant after Holm's correction over their table, which is another family than a claim's.

What to keep in mind:

* The switch gap is accuracy with the own latent minus accuracy with one inferred from a user of the opposite group.
* `fedbt` and `fedbiscuit` predict the same for everybody. Where opposite groups are equal in number (`hh-attributes`)
  they are at 0.5 by construction, and a lead over them there is no achievement.
* In tables of *seen* users `local` and `fedpdpo` use all of a user's training pairs, methods with a latent the context.
* The number of clusters M is the number of true groups unless a study says otherwise (`auto` chooses it); who belongs
  to which group no method is told, but the oracles and `fedvpa-gp+labels`.
* Settings and inference were chosen on validation users, with the exceptions that research.md lists under "Where test
  data was seen"; [search.md](search.md) lists how many settings each method was given, and what was chosen. Rounds and
  clients per round are the benchmark's, equal for all methods."""


def page(parts: Sequence[Part], generated_by: str, remark: str = "", rest: str = "") -> str:
    """The whole page.

    Args:
        generated_by: the command that writes it.
        remark: what else there is to say at the beginning; rest: further sections.
    """
    head = ["# Benchmarks", "", f"<!-- Generated by `{generated_by}`; do not edit. -->", ""]
    head += [
        verdicts(parts, paper=True),
        "",
        verdicts(parts, paper=False),
        "",
        PREFACE,
        "",
        *([remark, ""] if remark else []),
    ]
    return "\n".join([*head, *(section(part) for part in parts), rest])
