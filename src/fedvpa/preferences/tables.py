"""One reader for tables: JSON Lines, a JSON array, CSV, TSV, Parquet, a folder of `datasets`, a dataset of the Hub.

What a file is, its content says (magic bytes, the first line), not its name. CSV, TSV and JSON Lines may be compressed
with gzip or Zstandard.
"""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fedvpa.errors import UserError
from fedvpa.preferences.hub import is_hub_id, load_hub_rows
from fedvpa.preferences.lines import OnInvalid, Row, json_lines, parse_rows, read_bytes, type_name

T = TypeVar("T")
_DATASET_FILES = ("dataset_info.json", "dataset_dict.json")
_HUB_REMEDY = "check the name of the file or data set"
_CSV_REMEDY = "write it with pandas.DataFrame.to_csv, or as JSON Lines"


@dataclass(frozen=True)
class Table:
    """The rows of a table.

    Attributes:
        path: the file, folder or Hub id.
        rows: each row with its 1-based line (JSON Lines, CSV: the header is line 1) or number; a row that could not be
            read is its error.
        typed: whether cells have types; a CSV file's are texts.
    """

    path: Path
    rows: Sequence[tuple[int, Row | UserError]]
    typed: bool = True

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns that some row has, in the order of first appearance."""
        return tuple(dict.fromkeys(name for _, row in self.rows if not isinstance(row, UserError) for name in row))


def table_rows(
    table: Table,
    parse: Callable[[Row, Path, int], T],
    on_invalid: OnInvalid = "error",
    counts: Counter[str] | None = None,
) -> list[T]:
    """Parses each row of a table; as `lines.parse_rows`."""
    return parse_rows(table.rows, table.path, parse, on_invalid, counts)


def read_table(path: str | Path) -> Table:
    """Reads a table.

    Args:
        path: a file; a folder that `datasets.Dataset.save_to_disk` made; or OWNER/NAME of a dataset on the Hub, where
            there is no such file.

    Raises:
        UserError: a file that is not there, not whole or no table, or a Hub that cannot be reached.
    """
    path = Path(path).expanduser()
    if is_dataset_folder(path):
        return _dataset(path)
    if is_hub_id(str(path)) and not path.exists():
        return Table(path, list(enumerate(load_hub_rows(str(path), "train", _HUB_REMEDY), start=1)))
    data = read_bytes(path)
    if data.startswith(b"PAR1"):
        return _parquet(data, path)
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"[" and (rows := _json_array(data, path)) is not None:
        return Table(path, rows)
    separator = None if start in (b"{", b"[") else _separator(data)
    if separator is not None:
        return _separated(data, path, separator)
    return Table(path, list(json_lines(data, path)))


def is_dataset_folder(path: Path) -> bool:
    """Whether `datasets` saved a dataset in this folder."""
    return path.is_dir() and any((path / name).is_file() for name in _DATASET_FILES)


def _dataset(path: Path) -> Table:
    import datasets  # takes a second, and most tables are files

    try:
        found = datasets.load_from_disk(str(path))
        if isinstance(found, datasets.DatasetDict):
            if "train" not in found and len(found) != 1:
                problem = f"has the splits {', '.join(found)}, but no train"
                raise UserError(problem, "save one of them by itself", file=path)
            found = found["train"] if "train" in found else next(iter(found.values()))
        return Table(path, list(enumerate(found.to_list(), start=1)))
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"not a whole dataset folder ({reason})", "save it again", file=path) from None


def _parquet(data: bytes, path: Path) -> Table:
    try:
        return Table(path, list(enumerate(pq.read_table(pa.BufferReader(data)).to_pylist(), start=1)))
    except (OSError, ValueError, pa.ArrowException):
        raise UserError("not a complete Parquet file", "fetch or write it again", file=path) from None


def _json_array(data: bytes, path: Path) -> list[tuple[int, Row | UserError]] | None:
    """The rows of a JSON array; None if the first line alone is JSON, as in JSON Lines."""
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as e:
        if e.msg == "Extra data":
            return None
        problem = f"not valid JSON ({e.msg} at column {e.colno})"
        raise UserError(problem, "give an array of objects, or JSON Lines", file=path, line=e.lineno) from None
    except (ValueError, RecursionError):
        return None
    return [(i, v if isinstance(v, dict) else _no_object(v, path, i)) for i, v in enumerate(values, start=1)]


def _no_object(value: Any, path: Path, number: int) -> UserError:
    return UserError(f"is {type_name(value)}, not an object", "give an array of objects", file=path, line=number)


def _separator(data: bytes) -> str | None:
    """What separates the columns of a CSV file, by its first line; None where the file is not such text."""
    try:
        head = data.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n").partition(b"\n")[0].decode()
    except UnicodeDecodeError:
        return None
    found = max("\t,;", key=head.count)
    return found if found in head and "\0" not in head else None


def _separated(data: bytes, path: Path, separator: str) -> Table:
    """A CSV or TSV file; every cell is text, as it stands there."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise UserError("not text in UTF-8", "save the table as UTF-8", file=path, line=line) from None
    options: dict[str, Any] = {"sep": separator, "dtype": str, "na_filter": False, "skip_blank_lines": False}
    options["skipinitialspace"] = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(io.StringIO(text), index_col=False, **options)
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, ValueError, csv.Error) as e:
        raise _no_table(str(e), path) from None
    names = [str(name) for name in frame.columns]
    rows = zip(*(frame[name].tolist() for name in frame.columns), strict=True)
    return Table(path, [(n, dict(zip(names, r, strict=True))) for n, r in enumerate(rows, 2) if any(r)], typed=False)


def _no_table(reason: str, path: Path) -> UserError:
    if more := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", reason):
        problem = f"has {more[3]} cells, but there are {more[1]} columns"
        return UserError(problem, "put texts with separators in quotes", file=path, line=int(more[2]))
    if open_quote := re.search(r"EOF inside string starting at row (\d+)", reason):
        line = int(open_quote[1]) + 1
        return UserError("a quote is opened and never closed", _CSV_REMEDY, file=path, line=line)
    if "Length of header" in reason:
        return UserError("has more cells than columns", "put texts with separators in quotes", file=path, line=2)
    return UserError(
        f"not a table ({reason.strip().splitlines()[0] if reason.strip() else 'unreadable'})", _CSV_REMEDY, file=path
    )
