"""What a training over a network has fixed in round 0: who takes part, and how features and ratings are
standardised."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import write_bytes, write_text
from fedvpa.federation.moments import Standardizer

FOLDER = "network"
"""In a run folder: the session, and what happened (`Faults`)."""

PRIVATE = "private"
"""In it, in a simulation: the nodes' state folders."""

_FORGOTTEN = "forgotten-"
"""Begins the name that stays in the place of a forgotten user; no pseudonym begins with it."""

SESSION, _TENSORS = "session.json", "session.safetensors"


@dataclass(frozen=True)
class Session:
    """Written once, before the first round; a restarted server goes on with it.

    Attributes:
        training: a random name, by which clients tell their state of this training from that of another.
        users: pseudonyms in the order of the clients' ids.
        pairs: per user the number of training pairs, as it said at the start.
        standardizer: from the users' moments, (D,) each; rating_scale: mean and deviation of their ratings.
    """

    training: str
    users: tuple[str, ...]
    pairs: tuple[int, ...]
    standardizer: Standardizer
    rating_scale: tuple[float, float]

    @property
    def takes_part(self) -> Tensor:
        """(users,) bool, False for the forgotten."""
        return torch.tensor([not user.startswith(_FORGOTTEN) for user in self.users])

    def without(self, position: int) -> Session:
        """The session without the user at a position: the place stays, nobody can fill it again."""
        users, pairs = list(self.users), list(self.pairs)
        users[position], pairs[position] = f"{_FORGOTTEN}{position}", 0
        return replace(self, users=tuple(users), pairs=tuple(pairs))

    @property
    def features(self) -> int:
        return len(self.standardizer.mean)

    def save(self, folder: Path) -> None:
        """Into a run's ``network/``; the JSON file is written last, so where it is, all is."""
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / _TENSORS, safetensors.torch.save(self.standardizer._asdict()))
        values = {"training": self.training, "users": self.users, "pairs": self.pairs}
        values["rating_scale"] = self.rating_scale
        write_text(folder / SESSION, json.dumps(values) + "\n")

    @staticmethod
    def load(folder: Path) -> Session | None:
        """None where none was written.

        Raises:
            UserError: a damaged one.
        """
        if not (folder / SESSION).is_file():
            return None
        try:
            values = json.loads((folder / SESSION).read_text(encoding="utf-8"))
            named = safetensors.torch.load_file(folder / _TENSORS)
            standardizer = Standardizer(named["mean"], named["scale"])
            users, pairs, (mean, deviation) = (values[k] for k in ("users", "pairs", "rating_scale"))
            scale = float(mean), float(deviation)
            return Session(str(values["training"]), tuple(users), tuple(pairs), standardizer, scale)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            raise UserError(
                "is damaged, or of another version", "start in another run folder", file=folder / SESSION
            ) from None


def new_name() -> str:
    """A name for a training."""
    return secrets.token_hex(8)
