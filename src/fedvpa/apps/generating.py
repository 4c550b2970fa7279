"""`fedvpa generate`: a policy's answer, or the selector's choice among the base model's."""

from __future__ import annotations

from pathlib import Path

from fedvpa.alignment.policy import INFO, PersonalizedPolicy
from fedvpa.errors import UserError


def open_policy(folder: Path, base: bool, best_of: int) -> PersonalizedPolicy:
    """The policy in a folder of `fedvpa align`; in one of `fedvpa train` the untrained model with its selector.

    Raises:
        UserError: neither is there, or nothing would make the answer personal.
    """
    if (folder / INFO).is_file() or not (folder / "model.json").is_file():
        return PersonalizedPolicy.from_pretrained(folder)
    if best_of < 2 and not base:
        problem = "holds a selector but no policy, so only a choice can be personal"
        raise UserError(problem, "give --best-of 8, or align a policy with `fedvpa align`", file=folder)
    return PersonalizedPolicy.untrained(folder)
