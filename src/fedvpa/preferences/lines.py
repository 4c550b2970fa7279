"""Reading JSON Lines at the border: every problem of a file becomes one `UserError` that names file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from fedvpa.errors import UserError

OnInvalid = Literal["error", "skip"]
Row = Mapping[str, Any]
T = TypeVar("T")
_NO_TEXT = "give a JSON Lines file in UTF-8, plain or gzipped"


def read_rows(
    path: str | Path,
    parse: Callable[[Row, Path, int], T],
    on_invalid: OnInvalid = "error",
    counts: Counter[str] | None = None,
) -> list[T]:
    """Parses every line of a JSON Lines file (plain or gzipped; byte-order mark, CRLF and blank lines tolerated).

    Args:
        path: the file.
        parse: turns one object, with its file and 1-based line, into a row, or raises `UserError`.
        on_invalid: ``error`` raises at the first invalid line, ``skip`` leaves it out.
        counts: its ``invalid rows`` is raised by the lines left out.

    Raises:
        UserError: a file that cannot be read, an invalid line, or a file without a valid one.
    """
    path = Path(path)
    rows: list[T] = []
    skipped, first = 0, None
    for number, line in _lines(path):
        try:
            rows.append(parse(_object(line, path, number), path, number))
        except UserError as e:
            if on_invalid == "error":
                raise
            skipped, first = skipped + 1, first or e
    if not rows:
        if first is None:
            raise UserError("the file is empty", "give one JSON object a line", file=path)
        raise UserError(f"none of the {skipped} rows is valid (the first: {first.problem})", first.remedy, file=path)
    if counts is not None and skipped:
        counts["invalid rows"] += skipped
    return rows


def text_field(row: Row, field: str, path: Path, line: int) -> str:
    """The text under ``field``, which must be there, be text and not be blank."""
    if field not in row:
        raise UserError("missing column", f"give every row a {field!r}", file=path, line=line, field=field)
    return checked_text(row[field], field, path, line)


def checked_text(value: Any, field: str, path: Path, line: int) -> str:
    """``value`` if it is text with something in it that UTF-8 can hold."""
    if not isinstance(value, str):
        raise UserError(f"must be text, not {type_name(value)}", file=path, line=line, field=field)
    if not value.strip():
        raise UserError("is empty", "fill it in or remove the row", file=path, line=line, field=field)
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise UserError("holds half of a surrogate pair", "write the text as UTF-8", file=path, line=line, field=field)
    return value


def type_name(value: Any) -> str:
    """JSON's name for the type of a value."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(_read(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise UserError("is a folder, not a file", "name the file inside it", file=path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError("no such file", "check the path", file=path) from None
    except (OSError, ValueError) as e:
        raise UserError(f"cannot be read ({getattr(e, 'strerror', None) or e})", "check the path", file=path) from None
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        raise UserError("not a complete gzip file", "fetch or compress it again", file=path) from None


def _object(line: bytes, path: Path, number: int) -> Row:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError("not text", _NO_TEXT, file=path, line=number) from None
    try:
        row = json.loads(text)
    except json.JSONDecodeError as e:
        problem = f"not valid JSON ({e.msg} at column {e.colno})"
        raise UserError(problem, "give one JSON object a line", file=path, line=number) from None
    except (ValueError, RecursionError):  # a number with thousands of digits, brackets nested without end
        raise UserError("not valid JSON", "give one JSON object a line", file=path, line=number) from None
    if not isinstance(row, dict):
        problem = f"is {type_name(row)}, not an object"
        raise UserError(problem, "give one JSON object a line", file=path, line=number)
    return row
