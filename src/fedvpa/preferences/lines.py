"""Reading rows at the border: every problem of a file becomes one `UserError` that names file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa

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
    return parse_rows(json_lines(read_bytes(path), path), path, parse, on_invalid, counts)


def parse_rows(
    rows: Iterable[tuple[int, Row | UserError]],
    path: Path,
    parse: Callable[[Row, Path, int], T],
    on_invalid: OnInvalid = "error",
    counts: Counter[str] | None = None,
) -> list[T]:
    """Parses rows, each with its 1-based number; a row that could not be read is its error. As `read_rows`."""
    parsed: list[T] = []
    skipped, first = 0, None
    for number, row in rows:
        try:
            if isinstance(row, UserError):
                raise row
            parsed.append(parse(row, path, number))
        except UserError as e:
            if on_invalid == "error":
                raise
            skipped, first = skipped + 1, first or e
    if not parsed:
        if first is None:
            raise UserError("the file is empty", "give one row a line", file=path)
        raise UserError(f"none of the {skipped} rows is valid (the first: {first.problem})", first.remedy, file=path)
    if counts is not None and skipped:
        counts["invalid rows"] += skipped
    return parsed


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
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise UserError("holds half of a surrogate pair", "write the text as UTF-8", file=path, line=line, field=field)
    return value


def type_name(value: Any) -> str:
    """JSON's name for the type of a value."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def json_lines(data: bytes, path: Path) -> Iterator[tuple[int, Row | UserError]]:
    """The lines of a file that are not blank, with their numbers; a line that is no JSON object is its error."""
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, _object(line, path, number)
            except UserError as e:
                yield number, e


def read_bytes(path: Path) -> bytes:
    """A file's content, decompressed if it is a gzip or Zstandard file.

    Raises:
        UserError: a file that is not there, cannot be read or is not whole.
    """
    if path.is_dir():
        raise UserError("is a folder, not a file", "name the file inside it", file=path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError("no such file", "check the path", file=path) from None
    except (OSError, ValueError) as e:
        raise UserError(f"cannot be read ({getattr(e, 'strerror', None) or e})", "check the path", file=path) from None
    if data.startswith(b"\x1f\x8b"):
        try:
            return gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            raise UserError("not a complete gzip file", "fetch or compress it again", file=path) from None
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            return bytes(pa.CompressedInputStream(pa.BufferReader(data), "zstd").read())
        except (OSError, pa.ArrowException):
            raise UserError("not a complete Zstandard file", "fetch or compress it again", file=path) from None
    return data


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
