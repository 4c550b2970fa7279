"""Tables of ratings and votes, and the items that they are about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedvpa.config import DataConfig
from fedvpa.errors import UserError
from fedvpa.preferences.cells import by_role, group_of, item_of, name_of, number_of, truth_of
from fedvpa.preferences.collecting import Judgement
from fedvpa.preferences.columns import ITEMS, LABELS, Layout, recognise
from fedvpa.preferences.lines import OnInvalid, Row
from fedvpa.preferences.schema import Item
from fedvpa.preferences.tables import Table, read_table, table_rows


@dataclass(frozen=True)
class ItemTable:
    """Items by their ids, and the file that lists them."""

    path: Path
    items: Mapping[str, Item]

    def find(self, name: str, field: str, path: Path, line: int) -> Item:
        """The item of a row; `UserError` if there is no such item."""
        if name not in self.items:
            problem = f"no item {name!r} in {self.path}"
            raise UserError(problem, "add it there or remove the row", file=path, line=line, field=field)
        return self.items[name]


def read_items(path: Path, data: DataConfig, counts: Counter[str]) -> ItemTable:
    """Reads a table with the columns item, text and usually prompt.

    Raises:
        UserError: a missing column, an item without a text, or two texts of one item.
    """
    table = read_table(path)
    _, columns = recognise(table, data, (ITEMS,))
    found: dict[str, tuple[Item, int]] = {}

    def parse(row: Row, path: Path, line: int) -> None:
        _remember(found, name_of(row, "item", path, line), item_of(row, path, line, counts), path, line)

    table_rows(table, by_role(parse, columns, table.typed), data.on_invalid, counts)
    return ItemTable(path, {name: item for name, (item, _) in found.items()})


class _Rating(NamedTuple):
    line: int
    user: str
    item: Item
    value: float
    truth: bool


def read_ratings(
    table: Table,
    layout: Layout,
    columns: Mapping[str, str],
    items: ItemTable | None,
    on_invalid: OnInvalid,
    counts: Counter[str],
    groups: dict[str, str | None],
) -> tuple[list[Judgement], bool]:
    """The ratings of a table, and whether they are votes.

    They are votes if all of them are true or false, or 1, 0 and -1; a 0 is a pass, left out and counted, but among
    labels that are 0 or 1 it is a no. A rating that a user repeats counts once.

    Args:
        items: where ids are looked up; None if the table has the texts itself.
        groups: filled with each user's group.

    Raises:
        UserError: an invalid row, ratings of a user for one item that disagree, ratings that are all equal, or nobody
            with two.
    """
    field = "label" if layout is LABELS else "rating"
    own: dict[str, tuple[Item, int]] = {}

    def parse(row: Row, path: Path, line: int) -> _Rating:
        user = name_of(row, "user", path, line)
        group_of(row, user, groups, path, line)
        if items is not None:
            item = items.find(name_of(row, "item", path, line), "item", path, line)
        else:
            item = item_of(row, path, line, counts)
            if "item" in row:
                _remember(own, name_of(row, "item", path, line), item, path, line)
        truth = truth_of(row, field)
        if truth is None:
            return _Rating(line, user, item, number_of(row, field, path, line), False)
        return _Rating(line, user, item, 1.0 if truth else -1.0, True)

    rows = table_rows(table, by_role(parse, columns, table.typed), on_invalid, counts)
    counts["rows"] += len(rows)
    rows = _without_repeats(rows, columns[field], table.path, on_invalid, counts)
    votes = _are_votes(rows, field, columns[field], table.path)
    if field == "label" and {r.value for r in rows} <= {0, 1}:  # a label of 0 is a no: nobody labels a pass
        rows = [r._replace(value=r.value or -1.0) for r in rows]
    if votes:
        counts["passes"] += sum(r.value == 0 for r in rows)
        rows = [r for r in rows if r.value]
    if len({r.value for r in rows}) < 2:
        problem = "all ratings are equal" if rows else "no rating is left"
        raise UserError(problem, "give ratings that tell items apart", file=table.path, field=columns[field])
    counts["users with one judgement"] += (lonely := sum(n == 1 for n in Counter(r.user for r in rows).values()))
    if lonely == len({r.user for r in rows}):
        problem = "no user with 2 ratings or more is left"
        raise UserError(problem, "give each user several rows", file=table.path, field=columns["user"])
    return [Judgement(r.user, r.item, None, r.value) for r in rows], votes


def _remember(known: dict[str, tuple[Item, int]], name: str, item: Item, path: Path, line: int) -> None:
    before, where = known.setdefault(name, (item, line))
    if before != item:
        problem = f"item {name!r} has another prompt or text on row {where}"
        raise UserError(problem, "give an item one text", file=path, line=line, field="item")


def _without_repeats(
    rows: Sequence[_Rating], column: str, path: Path, on_invalid: OnInvalid, counts: Counter[str]
) -> list[_Rating]:
    """Each user's ratings of each item once; of those that disagree none, or an error."""
    known: dict[tuple[str, Item], _Rating] = {}
    divided: set[tuple[str, Item]] = set()
    for row in rows:
        key = row.user, row.item
        before = known.setdefault(key, row)
        if before is row:
            continue
        counts["repeated rows"] += before.value == row.value
        if before.value != row.value:
            if on_invalid == "error":
                problem = f"user {row.user!r} rated this item {before.value:g} on row {before.line}, here {row.value:g}"
                remedy = "keep one of the rows, or leave out both with data.on_invalid=skip"
                raise UserError(problem, remedy, file=path, line=row.line, field=column)
            divided.add(key)
    counts["contradictory ratings"] += len(divided)
    return [row for key, row in known.items() if key not in divided]


def _are_votes(rows: Sequence[_Rating], field: str, column: str, path: Path) -> bool:
    values = {r.value for r in rows}
    truths = [r for r in rows if r.truth]
    if truths and len(truths) < len(rows):
        number = next(r for r in rows if not r.truth)
        problem = f"is a number, but row {truths[0].line} has true or false"
        raise UserError(problem, "give all rows the same kind", file=path, line=number.line, field=column)
    if field == "label" and not truths and not values <= {0, 1} and not values <= {-1, 0, 1}:
        number = next(r for r in rows if r.value not in (-1, 0, 1))
        raise UserError("must be true or false", "correct it", file=path, line=number.line, field=column)
    return bool(truths) or (values <= {-1, 0, 1} and -1 in values) or field == "label"
