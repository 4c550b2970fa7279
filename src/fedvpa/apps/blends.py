"""Prototypes with weights, as a text."""

from __future__ import annotations

from fedvpa.errors import UserError


def parse_blend(text: str, field: str = "--blend") -> dict[int, float]:
    """``0:0.3,1:0.7`` as prototypes with weights.

    Raises:
        UserError: anything else.
    """
    try:
        parts = [part.split(":") for part in text.split(",")]
        found = {int(k): float(w) for k, w in parts}
    except ValueError:
        found, parts = {}, []
    if not found or len(found) < len(parts):
        raise UserError(f"not understood ({text!r})", "write 0:0.3,1:0.7", field=field)
    return found
