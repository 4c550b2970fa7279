"""Writing: one prompt answered under several latents, by the run's policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedvpa.alignment.policy import PersonalizedPolicy
from fedvpa.apps.studio.judging import checked_prompt
from fedvpa.user import User


def write(policy: PersonalizedPolicy, prompt: str, users: Sequence[User], seed: int) -> Iterator[str]:
    """The policy's answer for each user in turn; the same seed gives the same answer.

    Raises:
        UserError: an empty or very long prompt.
    """
    messages = [m._asdict() for m in checked_prompt(prompt)]
    for user in users:
        yield policy.generate(messages, user, seed=seed)
