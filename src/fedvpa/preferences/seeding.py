"""The one seeding function: everything random derives from (seed, purpose, client, ...).

A result then does not depend on who drew first, and a longer run repeats the draws of a shorter one. This module
imports nothing of the project, so that every layer can use it.
"""

from __future__ import annotations

import hashlib
import json

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, on their order and on their types (sha256)."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with `derive_seed` of the same parts."""
    return torch.Generator().manual_seed(derive_seed(*parts))
