"""Tables of choices: the preferred response first, two responses and which was preferred, or two items by their ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from fedvpa.errors import UserError
from fedvpa.preferences.cells import by_role, group_of, name_of, preferred_of, strength_of
from fedvpa.preferences.collecting import Judgement
from fedvpa.preferences.columns import CHOICES, PAIRS, Layout
from fedvpa.preferences.jsonl import preference_of, two_responses
from fedvpa.preferences.lines import OnInvalid, Row
from fedvpa.preferences.rated_items import ItemTable
from fedvpa.preferences.schema import Item
from fedvpa.preferences.tables import Table, table_rows

Two = tuple[Item, Item, int]
"""Two items; +1 if the first was preferred, -1 if the second was, 0 for a tie."""


def read_choices(
    table: Table,
    layout: Layout,
    columns: Mapping[str, str],
    items: ItemTable | None,
    on_invalid: OnInvalid,
    counts: Counter[str],
    groups: dict[str, str | None],
) -> list[Judgement]:
    """The choices of a table; ties, and choices between items that have the same text, are left out and counted.

    Args:
        items: where the ids of the layout `columns.ITEM_CHOICES` are looked up.
        groups: filled with each user's group.

    Raises:
        UserError: an invalid row, or nothing but ties.
    """

    def parse(row: Row, path: Path, line: int) -> Judgement:
        user = name_of(row, "user", path, line)
        group_of(row, user, groups, path, line)
        first, second, value = two(row, path, line)
        strength = strength_of(row, path, line)
        return Judgement(user, first, second, 0 if strength == 0 else value, strength)

    two = _reader(layout, columns, items, counts)
    rows = table_rows(table, by_role(parse, columns, table.typed), on_invalid, counts)
    told_apart = [r for r in rows if r.first != r.second]
    counts["choices between equal texts"] += len(rows) - len(told_apart)
    decided = [r for r in told_apart if r.value]
    counts["ties"] += len(told_apart) - len(decided)
    if not decided:
        raise UserError(
            "every row is a tie or compares equal texts", "give rows in which one is preferred", file=table.path
        )
    return decided


def _reader(
    layout: Layout, columns: Mapping[str, str], items: ItemTable | None, counts: Counter[str]
) -> Callable[[Row, Path, int], Two]:
    def chosen(row: Row, path: Path, line: int) -> Two:
        prompt, one, two = preference_of(row, path, line, counts)
        return Item(prompt, one), Item(prompt, two), 1

    def texts(row: Row, path: Path, line: int) -> Two:
        prompt, one, two = two_responses(row, "a", "b", path, line, counts)
        return Item(prompt, one), Item(prompt, two), preferred_of(row, (columns["a"], columns["b"]), path, line)

    def ids(row: Row, path: Path, line: int) -> Two:
        assert items is not None
        names = name_of(row, "first", path, line), name_of(row, "second", path, line)
        one, two = (items.find(n, f, path, line) for n, f in zip(names, ("first", "second"), strict=True))
        if one.prompt != two.prompt:
            problem = "has another prompt than first"
            raise UserError(problem, "compare items of one prompt", file=path, line=line, field="second")
        return one, two, preferred_of(row, names, path, line)

    if layout is CHOICES:
        return chosen
    return texts if layout is PAIRS else ids
