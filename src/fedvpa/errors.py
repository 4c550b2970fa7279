"""The one exception for mistakes that a user can mend."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """A problem in the user's input, rendered as one line.

    The command line prints ``error: FILE:LINE: FIELD: problem; remedy`` and exits with code 2; parts that do not
    apply are left out.

    Args:
        problem: what is wrong, without a trailing full stop.
        remedy: what the user can do about it.
        file: the file (or folder) concerned.
        line: 1-based line in ``file``.
        field: the column, key or option concerned.
    """

    def __init__(
        self,
        problem: str,
        remedy: str | None = None,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
    ) -> None:
        self.problem, self.remedy, self.file, self.line, self.field = problem, remedy, file, line, field
        place = "" if file is None else str(file) if line is None else f"{file}:{line}"
        head = [part for part in (place, field or "") if part]
        message = ": ".join([*head, problem])
        super().__init__(message if remedy is None else f"{message}; {remedy}")


class MissingExtra(UserError, ImportError):
    """An optional part of the package is used, and what it needs is not installed.

    Args:
        missing: the module that cannot be imported; extra: the extra that brings it.
    """

    def __init__(self, missing: str, extra: str) -> None:
        super().__init__(f"{missing} is not installed", f'pip install "fedvpa[{extra}]"')
        self.name = missing
