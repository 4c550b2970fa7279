"""Rows of a dataset on the Hub, through the library `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fedvpa.config import TABLE_ENDINGS
from fedvpa.errors import UserError
from fedvpa.preferences.lines import Row


def is_hub_id(name: str) -> bool:
    """Whether ``name`` reads like OWNER/NAME of a dataset and not like a data file."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not name.endswith(TABLE_ENDINGS)


def load_hub_rows(name: str, split: str, remedy: str, /, **options: Any) -> Iterator[Row]:
    """The rows of ``split`` of the dataset ``name``, downloaded once by `datasets.load_dataset` (``options`` go to it).

    Raises:
        UserError: a Hub that cannot be reached, or a dataset or split that it does not have.
    """
    import datasets  # takes a second, and most runs read local files

    try:
        rows = datasets.load_dataset(name, split=split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"cannot be loaded from the Hub ({reason})", remedy, file=name) from None
    return iter(rows)
