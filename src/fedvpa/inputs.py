"""Arguments of the Python API in the forms that people have: rows, columns, one or many of them. Nothing of torch.

What the texts in them hold is read by `preferences.arguments` (a selector) or by the service (a client).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from fedvpa.errors import UserError

Rows = Any
"""One row (a mapping), rows, a pandas.DataFrame, a datasets.Dataset or a pyarrow.Table."""
_ROWS = "give rows (mappings), a DataFrame or a Dataset"
_USER = "give a User, the number of a prototype, a blend such as {0: 0.3, 1: 0.7}, or None for the average user"


def kind(value: Any) -> str:
    """What a value is, for an error."""
    return "None" if value is None else f"{type(value).__name__} ({str(value)[:40]!r})"


def rows_of(value: Rows, field: str) -> list[dict[str, Any]]:
    """Rows as a list of mappings; cells are plain values.

    Raises:
        UserError: it is no table, or one of its rows is no row.
    """
    if isinstance(value, Mapping):
        value = [value]
    elif hasattr(value, "to_pylist"):  # pyarrow.Table
        value = value.to_pylist()
    elif hasattr(value, "to_list") and hasattr(value, "column_names"):  # datasets.Dataset
        value = value.to_list()
    elif hasattr(value, "to_dict") and hasattr(value, "columns"):  # pandas.DataFrame
        value = value.to_dict("records")
    rows = listed(value, field, _ROWS)
    for i, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise UserError(f"must be an object, not {kind(row)}", _ROWS, file=field, line=i)
    return [{str(k): plain(v) for k, v in row.items()} for row in rows]


def listed(value: Any, field: str, remedy: str) -> list[Any]:
    """A list, tuple, column or generator as a list; a text is none, though Python can go through its letters.

    Raises:
        UserError: anything else.
    """
    if isinstance(value, (str, bytes, Mapping, BaseModel)) or not isinstance(value, Iterable):
        raise UserError(f"must be a list, not {kind(value)}", remedy, field=field)
    try:
        return list(value)
    except TypeError:  # an array without dimensions
        raise UserError(f"must be a list, not {kind(value)}", remedy, field=field) from None


def plain(value: Any) -> Any:
    """A NumPy value, or an array, as Python has it."""
    return value.tolist() if hasattr(value, "tolist") and hasattr(value, "dtype") else value


def is_one(value: Any) -> bool:
    """Whether this is one text or one list of messages, and not many of them."""
    value = plain(value)
    if isinstance(value, str) or not isinstance(value, Iterable) or isinstance(value, Mapping):
        return True
    return isinstance(value, Sequence) and bool(value) and all(_is_turn(turn) for turn in value)


def many(value: Any, n: int, field: str) -> list[Any]:
    """n prompts: one for all, or one each.

    Raises:
        UserError: another number.
    """
    if is_one(value):
        return [value] * n
    found = listed(value, field, "give one for all, or one each")
    if len(found) != n:
        raise UserError(f"{len(found)} for {n} responses", "give one for all, or one each", field=field)
    return found


def number_of(value: Any, field: str, least: int = 1) -> int:
    """A whole number.

    Raises:
        UserError: anything else, or one below the least.
    """
    try:
        found = operator.index(value)
    except TypeError:
        found = least - 1
    if found < least or isinstance(value, bool):
        raise UserError(f"must be a whole number from {least} on, not {kind(value)}", "correct it", field=field)
    return found


def weights_of(value: Any, field: str = "user") -> dict[int, float]:
    """A prototype's number, or a blend of prototypes, as numbers with weights.

    Raises:
        UserError: neither.
    """
    if not isinstance(value, Mapping):
        try:
            found = None if isinstance(value, bool) else {operator.index(value): 1.0}
        except TypeError:
            found = None
    else:
        try:
            found = {operator.index(k): float(w) for k, w in value.items()}
        except (TypeError, ValueError):
            found = None
    if found is None:
        raise UserError(f"is {kind(value)}", _USER, field=field)
    return found


def whose(user: Any) -> str:
    """What sort of a user is meant, in a word."""
    if user is None:
        return "average"
    if isinstance(user, Mapping):
        return "blend"
    return f"prototype_{user}" if hasattr(user, "__index__") else "user"


def name_of(value: Any, field: str) -> str:
    """A person's id as a name: text, or a whole number, also as 3.0, which pandas makes of it.

    Raises:
        UserError: anything else.
    """
    value = plain(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise UserError(f"is {kind(value)}, not an id", "give a text or a whole number", field=field)
    return str(value)


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "_asdict")
