"""Votes on statements from Polis (compdemocracy.org/polis), as its export gives them: comments.csv and votes.csv."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedvpa.errors import UserError
from fedvpa.preferences.cells import by_role, name_of, number_of
from fedvpa.preferences.collecting import Judgement, people_of
from fedvpa.preferences.jsonl import NO_PROMPT
from fedvpa.preferences.lines import OnInvalid, Row, text_field
from fedvpa.preferences.people import PeopleTable
from fedvpa.preferences.schema import Item, as_prompt
from fedvpa.preferences.tables import Table, read_table, table_rows

ATTRIBUTION = (
    "Data was gathered using the Polis software (compdemocracy.org/polis) and is sub-licensed under CC BY 4.0 with "
    "Attribution to The Computational Democracy Project."
)
_COMMENTS = {"item": "comment-id", "text": "comment-body", "author": "author-id", "moderated": "moderated"}
_TALLIES = {"agrees": "agrees", "disagrees": "disagrees"}
_VOTES = {"user": "voter-id", "item": "comment-id", "vote": "vote", "time": "timestamp"}
_REMEDY = "keep the layout of Polis' export"
SHIPPED = Path(__file__).parents[1] / "data_files" / "polis"
"""Conversations that come with the package, each with its attribution."""
DEFAULT = "bowling-green"


class _Statement(NamedTuple):
    name: str
    item: Item
    author: str | None
    rejected: bool
    more_agree: int
    """The sign of agrees minus disagrees in the export, 0 where it is not told."""


class _Vote(NamedTuple):
    user: str
    name: str
    value: int
    time: float


def find(name: str | None) -> Path:
    """The folder or file of a conversation: a path, or the name of one in `SHIPPED`; None is `DEFAULT`.

    Raises:
        UserError: neither.
    """
    path = Path(name or DEFAULT).expanduser()
    shipped = {folder.name: folder for folder in SHIPPED.iterdir()}
    if name is None or (name in shipped and not path.exists()):
        return shipped[name or DEFAULT]
    if not path.exists():
        known = ", ".join(sorted(shipped))
        raise UserError("no such file or folder", f"name a Polis export, or what is shipped ({known})", file=path)
    return path


def is_export(folder: Path) -> bool:
    """Whether a folder holds Polis' export."""
    return (folder / "comments.csv").is_file() and (folder / "votes.csv").is_file()


def read_export(folder: Path, on_invalid: OnInvalid) -> PeopleTable:
    """Reads an export. The prompt is the topic in summary.csv, if it is there.

    Left out and counted: statements that moderators rejected, authors' votes on their own statements, passes, and all
    but a person's last vote on a statement. A vote of 1 is agreement; where the statements' own counts of
    agreements say that it is the other way round, votes are turned.

    Raises:
        UserError: a missing column, an invalid row, or no vote that is left.
    """
    counts: Counter[str] = Counter()
    topic = _topic(folder / "summary.csv")
    prompt = as_prompt(topic) if topic else NO_PROMPT

    def statement(row: Row, path: Path, line: int) -> _Statement:
        author = name_of(row, "author", path, line) if str(row.get("author", "")).strip() else None
        told = all(str(row.get(k, "")).strip() for k in _TALLIES)
        more = (number_of(row, "agrees", path, line) - number_of(row, "disagrees", path, line)) if told else 0
        rejected = str(row.get("moderated", "")).strip() in ("-1", "-1.0")
        item = Item(prompt, text_field(row, "text", path, line).strip())
        return _Statement(name_of(row, "item", path, line), item, author, rejected, (more > 0) - (more < 0))

    def vote(row: Row, path: Path, line: int) -> _Vote:
        value = number_of(row, "vote", path, line)
        if value not in (-1, 0, 1):
            raise UserError(f"must be 1, 0 or -1, not {value:g}", _REMEDY, file=path, line=line, field="vote")
        name = name_of(row, "item", path, line)
        if name not in statements:
            problem = f"no statement {name!r} in comments.csv"
            raise UserError(problem, "add it there or remove the row", file=path, line=line, field="item")
        time = number_of(row, "time", path, line) if "time" in row else float(line)
        return _Vote(name_of(row, "user", path, line), name, int(value), time)

    comments, votes = read_table(folder / "comments.csv"), read_table(folder / "votes.csv")
    _check(comments, ("item", "text"), _COMMENTS)
    _check(votes, ("user", "item", "vote"), _VOTES)
    found = table_rows(comments, by_role(statement, _COMMENTS | _TALLIES, comments.typed), on_invalid, counts)
    statements = {s.name: s for s in found}
    rows = table_rows(votes, by_role(vote, _VOTES, votes.typed), on_invalid, counts)
    counts["rows"] += len(rows)
    kept = _kept(rows, statements, counts)
    if not kept:
        raise UserError("no vote is left", "see which statements are rejected in comments.csv", file=votes.path)
    line = f"{folder}: Polis export (user=voter-id, item=comment-id, rating=vote, text=comment-body); votes"
    return people_of(kept, counts, votes=True, notes=(ATTRIBUTION,), columns=line)


def _kept(rows: Sequence[_Vote], statements: Mapping[str, _Statement], counts: Counter[str]) -> list[Judgement]:
    counts["rejected statements"] += sum(s.rejected for s in statements.values())
    last: dict[tuple[str, Item], _Vote] = {}
    for v in sorted(rows, key=lambda v: v.time):
        s = statements[v.name]
        if s.rejected:
            counts["votes on rejected statements"] += 1
        elif s.author == v.user:
            counts["authors' own votes"] += 1
        else:
            counts["votes that were changed"] += (v.user, s.item) in last
            last[v.user, s.item] = v
    sign = _sign(last.values(), statements) if last else 1
    counts["passes"] += sum(v.value == 0 for v in last.values())
    return [Judgement(user, item, None, float(sign * v.value)) for (user, item), v in last.items() if v.value]


def _sign(votes: Iterable[_Vote], statements: Mapping[str, _Statement]) -> int:
    """1 if a vote of 1 is agreement, -1 if it is disagreement, by the statements' own counts."""
    sums: Counter[str] = Counter()
    for v in votes:
        sums[v.name] += v.value
    return -1 if sum(((n > 0) - (n < 0)) * statements[name].more_agree for name, n in sums.items()) < 0 else 1


def _check(table: Table, roles: Sequence[str], columns: Mapping[str, str]) -> None:
    for role in roles:
        if columns[role] not in table.columns:
            problem = f"missing column; there are {', '.join(table.columns) or 'none'}"
            raise UserError(problem, _REMEDY, file=table.path, line=1, field=columns[role])


def _topic(path: Path) -> str | None:
    """The topic in summary.csv, a row ``topic,TEXT``."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as f:
        rows = {r[0].strip().lower(): r[1].strip() for r in csv.reader(f) if len(r) > 1}
    return rows.get("topic") or rows.get("conversation-description") or None
