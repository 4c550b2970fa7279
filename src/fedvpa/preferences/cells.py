"""What a cell of a table may hold: a name or an id, a number, a vote, which of two was preferred."""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedvpa.errors import UserError
from fedvpa.preferences.jsonl import one_response
from fedvpa.preferences.lines import Row, text_field, type_name
from fedvpa.preferences.schema import Item

T = TypeVar("T")
_FIRST = {"a", "1", "first", "left", "model_a", "response_a", "option_a"}
_SECOND = {"b", "2", "second", "right", "model_b", "response_b", "option_b"}
_TIES = {"equal", "same", "draw", "both", "neither"}
_WHOLE = re.compile(r"^(-?\d+)\.0$")
_NAMES = ("user", "item", "first", "second", "group")
_MAY_BE_BLANK = ("group", "margin", "score_chosen", "score_rejected")


def by_role(
    parse: Callable[[Row, Path, int], T], columns: Mapping[str, str], typed: bool
) -> Callable[[Row, Path, int], T]:
    """`parse` for a row whose cells are under their roles; its errors name the table's columns.

    Numbers that a table without types writes as ``3.0`` are ``3``, where they are names.
    """

    maybe_blank = [role for role in _MAY_BE_BLANK if role in columns]
    names = [] if typed else [role for role in _NAMES if role in columns]

    def parsed(row: Row, path: Path, line: int) -> T:
        cells = {role: row[name] for role, name in columns.items() if name in row}
        for role in maybe_blank:
            value = cells.get(role)
            if (isinstance(value, str) and not value.strip() and not typed) or _nan(value):
                del cells[role]
        for role in names:
            if role in cells and cells[role].endswith(".0"):
                cells[role] = _WHOLE.sub(r"\1", cells[role])
        try:
            return parse(cells, path, line)
        except UserError as e:
            raise _renamed(e, columns) from None

    return parsed


def name_of(row: Row, field: str, path: Path, line: int) -> str:
    """A user's, an item's or a group's name: text, or a whole number, also as 3.0, which pandas makes of it."""
    value = row.get(field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_field(row, field, path, line)


def group_of(row: Row, user: str, groups: dict[str, str | None], path: Path, line: int) -> None:
    """Takes the group of a row's user into `groups`; it must be the same in all rows."""
    group = None if row.get("group") is None else name_of(row, "group", path, line)
    if groups.setdefault(user, group) != group:
        problem = f"user {user!r} is in group {groups[user]!r} on an earlier row, here in {group!r}"
        raise UserError(problem, "give a user one group", file=path, line=line, field="group")


def number_of(row: Row, field: str, path: Path, line: int) -> float:
    """A finite number, also as text."""
    value = row.get(field)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        problem = "is empty" if value is None or value == "" else f"must be a number, not {_shown(row[field])}"
        raise UserError(problem, "fill it in or remove the row", file=path, line=line, field=field)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        problem = f"must be a finite number, not {_shown(row[field])}"
        raise UserError(problem, "fill it in or remove the row", file=path, line=line, field=field)
    return number


def truth_of(row: Row, field: str) -> bool | None:
    """True or false, also as text; None for anything else."""
    value = row.get(field)
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value.strip().lower()) if isinstance(value, str) else None


def preferred_of(row: Row, names: tuple[str, str], path: Path, line: int) -> int:
    """+1 if the first of two was preferred, -1 if the second was, 0 for a tie.

    Args:
        names: what the two are called in this row: their ids or columns.
    """
    value = row.get("preferred")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None or isinstance(value, bool) else str(value).strip()
    if text in names:
        return 1 if text == names[0] else -1
    plain = text.lower().replace(" ", "_").replace("-", "_")
    if plain in _FIRST or plain in _SECOND:
        return 1 if plain in _FIRST else -1
    if plain in _TIES or plain.startswith("tie"):
        return 0
    problem = f"must be a, b, 1, 2, first, second, equal or tie, not {_shown(value)}"
    raise UserError(problem, "correct it or remove the row", file=path, line=line, field="preferred")


def strength_of(row: Row, path: Path, line: int) -> float | None:
    """The strength of a choice, from ``margin`` or the two scores; 0 is a tie, None where it is not given."""
    if row.get("margin") is not None:
        field, strength = "margin", number_of(row, "margin", path, line)
    elif row.get("score_chosen") is not None and row.get("score_rejected") is not None:
        field = "score_chosen"
        strength = number_of(row, field, path, line) - number_of(row, "score_rejected", path, line)
    else:
        return None
    if strength < 0:
        problem = "is below 0" if field == "margin" else "is below the score of the rejected response"
        raise UserError(problem, "correct it or remove the row", file=path, line=line, field=field)
    return strength


def item_of(row: Row, path: Path, line: int, counts: Counter[str] | None = None) -> Item:
    """The item in the cells ``prompt`` and ``text``."""
    return Item(*one_response(row, "text", path, line, counts))


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _shown(value: Any) -> str:
    return repr(value)[:40] if isinstance(value, (str, int, float)) else type_name(value)


def _renamed(e: UserError, columns: Mapping[str, str]) -> UserError:
    role = re.match(r"\w*", e.field or "")
    name = columns.get(role[0]) if role else None
    if role is None or name is None or name == role[0]:
        return e
    remedy = e.remedy and e.remedy.replace(repr(role[0]), repr(name))
    return UserError(e.problem, remedy, file=e.file, line=e.line, field=name + (e.field or "")[len(role[0]) :])
