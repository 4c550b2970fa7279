"""A run says where it does without people's answers."""

from __future__ import annotations

from typing import Any

from fedvpa.apps.runs import average_notes


def row(size: int | None, inference: str, default: bool = True, method: str = "fedvpa-laplace") -> dict[str, Any]:
    return {"method": method, "context_size": size, "inference": inference, "default": default}


def test_sizes_whose_answers_stay_unused_are_named() -> None:
    rows = [row(0, "none"), row(2, "none"), row(8, "none"), row(8, "mixture", default=False), row(32, "mixture")]
    (note,) = average_notes(rows)
    assert note.startswith("fedvpa-laplace predicts what people prefer on average after 2, 8 answers")


def test_nothing_is_said_where_one_seed_uses_them_or_there_are_none() -> None:
    assert average_notes([row(8, "none"), row(8, "gaussian")]) == []
    assert average_notes([row(None, "none", method="fedbt"), row(0, "none")]) == []
