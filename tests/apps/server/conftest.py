"""One service for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Live, listening


@pytest.fixture(scope="session")
def live(finished: Path) -> Iterator[Live]:
    with listening(finished) as live:
        yield live
