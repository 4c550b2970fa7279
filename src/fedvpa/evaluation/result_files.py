"""Readers and writers of ``results.json`` and ``metrics.jsonl``, checked against `fedvpa.evaluation.results`."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fedvpa.errors import UserError
from fedvpa.evaluation.results import Results, RoundRecord


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads and checks a ``results.json``; keys that were left out come back with their defaults.

    Raises:
        UserError: a missing or malformed file, naming the file and the field.
    """
    path = Path(path)
    try:
        tree = json.loads(_read_text(path))
    except json.JSONDecodeError as e:
        raise UserError(f"not valid JSON ({e.msg})", "run `fedvpa compare` again", file=path, line=e.lineno) from None
    return check_results(tree, file=path)


def check_results(tree: Any, file: str | Path | None = None) -> dict[str, Any]:
    """Validates plain results; see `read_results`."""
    try:
        return Results.model_validate(tree).model_dump()
    except ValidationError as e:
        raise _explain(e, file) from None


def write_results(path: str | Path, results: Mapping[str, Any]) -> Path:
    """Checks results and writes them atomically; NaN and infinities become null, arrays and tensors lists.

    Raises:
        UserError: results that do not fit the schema, or a file that cannot be written.
    """
    path = Path(path)
    checked = check_results(plain(results), file=path)
    blocks = []
    for key, value in checked.items():
        if isinstance(value, list) and value:
            body = ",\n".join(json.dumps(item, ensure_ascii=False, allow_nan=False) for item in value)
            blocks.append(f"{json.dumps(key)}: [\n{body}\n]")
        else:
            blocks.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}")
    return write_text(path, "{" + ",\n".join(blocks) + "}\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads and checks a ``metrics.jsonl``.

    A last line without a line break is what a killed run leaves behind; it is left out.

    Raises:
        UserError: a missing file or a malformed line, naming file, line and field.
    """
    path = Path(path)
    records = []
    lines = _read_text(path).split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        if not line.strip():
            continue
        try:
            records.append(RoundRecord.model_validate(json.loads(line)).model_dump())
        except json.JSONDecodeError as e:
            raise UserError(f"not valid JSON ({e.msg})", "remove the line", file=path, line=number) from None
        except ValidationError as e:
            raise _explain(e, path, number) from None
    return records


def plain(value: Any) -> Any:
    """Numpy arrays and scalars and torch tensors as plain lists and numbers; NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_text(path: str | Path, text: str) -> Path:
    """`write_bytes` for text, in UTF-8."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Writes a file as a whole or not at all (a temporary file beside it, then a rename).

    Raises:
        UserError: the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
            temporary = f.name
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as e:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UserError(f"cannot be written ({e.strerror})", "check the folder and the free space", file=path) from None
    return path


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise UserError(f"cannot be read ({e.strerror})", "give the folder of a finished run", file=path) from None
    except UnicodeDecodeError:
        raise UserError("not a text file", "give the folder of a finished run", file=path) from None


def _explain(e: ValidationError, file: str | Path | None, line: int | None = None) -> UserError:
    first = e.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    field = ".".join(str(p) for p in first["loc"]) or None
    remedy = "docs/results-schema.md describes the format"
    return UserError(message[0].lower() + message[1:], remedy, file=file, line=line, field=field)
