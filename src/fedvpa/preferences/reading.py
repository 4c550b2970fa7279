"""What people judged, from any table or named source: `read_people`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedvpa.config import TABLE_ENDINGS, DataConfig
from fedvpa.errors import UserError
from fedvpa.preferences import polis, prism
from fedvpa.preferences.choices import read_choices
from fedvpa.preferences.collecting import people_of
from fedvpa.preferences.columns import CHOICES, ITEM_CHOICES, PAIRS, RATINGS, described, recognise
from fedvpa.preferences.people import PeopleTable
from fedvpa.preferences.rated_items import ItemTable, read_items, read_ratings
from fedvpa.preferences.tables import is_dataset_folder, read_table

NOTES = {
    "polis": polis.ATTRIBUTION,
    "jester": "Jester: Goldberg, Roeder, Gupta, Perkins, Eigentaste, Information Retrieval 4(2), 2001; for research.",
    "arguments": "UKPConvArg1: Habernal and Gurevych, ACL 2016; CC BY 4.0.",
    "prism": prism.ATTRIBUTION,
}
"""Per named source what must be said beside its results."""
_MAIN = ("ratings", "choices", "votes", "pairs", "preferences", "train")


def read_people(data: DataConfig) -> PeopleTable:
    """Reads `data.path` as the source `data.name`.

    A table holds choices (`chosen` and `rejected`; `a`, `b` and `preferred`; or `first`, `second` and `preferred`,
    ids of items), ratings or votes (`user`, `item`, `rating`), or likes (`prompt`, `completion`, `label`); see
    `columns`. A folder holds one such table and, where needed, ``items.*``; or it is a Polis export. For ``polis`` the
    path may be the name of a conversation that is shipped, or empty (`polis.find`).

    Raises:
        UserError: no path, a file that cannot be read, a missing column, or an invalid row.
    """
    for key in ("subsets", "groups", "group_shares"):
        if getattr(data, key) is not None:
            remedy = "remove it; groups come from column 'group'"
            raise UserError(f"has no meaning for {data.name}", remedy, field=f"data.{key}")
    if data.name == "polis":
        data = data.model_copy(update={"path": str(polis.find(data.path))})
    if data.path is None and data.name == "prism":
        data = data.model_copy(update={"path": prism.HUB_ID})
    if data.path is None:
        raise UserError("is empty", "name a table with prompt, chosen, rejected, user_id", field="data.path")
    path = Path(data.path).expanduser()
    if data.name == "prism":
        return prism.read(path, data.on_invalid)
    if polis.is_export(path) and data.name in ("polis", "table", "jsonl"):
        return polis.read_export(path, data.on_invalid)
    found = _read(path, data)
    return replace(found, notes=tuple(NOTES[k] for k in [data.name] if k in NOTES))


def _read(path: Path, data: DataConfig) -> PeopleTable:
    main = _main_table(path) if path.is_dir() and not is_dataset_folder(path) else path
    table = read_table(main)
    layout, columns = recognise(table, data)
    counts: Counter[str] = Counter()
    groups: dict[str, str | None] = {}
    needed = layout is ITEM_CHOICES or (layout is RATINGS and (data.items is not None or "text" not in columns))
    items = _items(main, data, counts) if needed else None
    if items is not None:
        columns = {role: name for role, name in columns.items() if role not in ("text", "prompt")}
    line = described(table, layout, columns) + (f"; items from {items.path}" if items else "")
    if layout in (CHOICES, PAIRS, ITEM_CHOICES):
        choices = read_choices(table, layout, columns, items, data.on_invalid, counts, groups)
        return people_of(choices, counts, groups, columns=line)
    ratings, votes = read_ratings(table, layout, columns, items, data.on_invalid, counts, groups)
    line += "; votes" if votes else "; numbers"
    return people_of(ratings, counts, groups, votes, columns=line)


def _items(table: Path, data: DataConfig, counts: Counter[str]) -> ItemTable:
    if data.items is not None:
        return read_items(Path(data.items).expanduser(), data, counts)
    beside = [f for f in _tables(table.parent) if _stem(f) == "items"]
    if not beside:
        remedy = "add columns prompt and text, a file items.csv beside it, or name one with data.items"
        raise UserError("has ids of items, but no texts", remedy, file=table)
    return read_items(beside[0], data, counts)


def _main_table(folder: Path) -> Path:
    """The table in a folder that is not the items'."""
    found = [f for f in _tables(folder) if _stem(f) != "items"]
    usual = [f for name in _MAIN for f in found if _stem(f) == name]
    if not found:
        known = ", ".join(TABLE_ENDINGS)
        raise UserError("no table in the folder", f"name a file or put one there ({known})", file=folder)
    if len(found) > 1 and not usual:
        names = ", ".join(f.name for f in found[:6])
        raise UserError(f"holds several tables ({names})", "name one with data.path", file=folder)
    return (usual or found)[0]


def _tables(folder: Path) -> Sequence[Path]:
    return (
        sorted(f for f in folder.glob("*") if f.is_file() and f.suffix.lower() in TABLE_ENDINGS)
        if folder.is_dir()
        else ()
    )


def _stem(file: Path) -> str:
    return file.name.split(".")[0].lower()
