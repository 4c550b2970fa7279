"""Judging: one prompt's answers ranked under several latents at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fedvpa.apps.studio.world import World
from fedvpa.errors import UserError
from fedvpa.preferences.dialogues import parse_dialogue
from fedvpa.preferences.schema import Prompt, as_prompt
from fedvpa.user import User

FEWEST, MOST = 2, 8
LETTERS = "ABCDEFGH"
LONGEST = 8000
"""Characters of a prompt or an answer."""


class Verdict(NamedTuple):
    """One answer under one latent.

    Attributes:
        score: mean probability to be preferred to another answer, with two answers p(a > b).
        rank: 1 for the best. rise: places that it stands higher than for the average user, negative if lower.
    """

    score: float
    rank: int
    rise: int


def ranks(scores: Sequence[float]) -> list[int]:
    """Ranks from 1; scores that are the same whole per cent, as they are shown, share the better rank."""
    shown = [round(100 * score) for score in scores]
    return [1 + sum(other > mine for other in shown) for mine in shown]


def judge(world: World, prompt: Prompt, answers: Sequence[str], users: Sequence[User]) -> list[list[Verdict]]:
    """Verdicts for the average user and then for each of `users`, an inner list per latent.

    Raises:
        UserError: a user of another model.
    """
    scores = world.selector.mean_preferences(prompt, answers, [world.average, *users]).tolist()
    average = ranks(scores[0])
    return [
        [Verdict(s, r, before - r) for s, r, before in zip(row, ranks(row), average, strict=True)] for row in scores
    ]


def checked_prompt(prompt: str) -> Prompt:
    """What was typed as a prompt.

    Raises:
        UserError: an empty or very long text.
    """
    return prompt_of(_text(prompt, "Prompt", "write a question, or pick one above"))


def checked(prompt: str, answers: Sequence[str]) -> tuple[Prompt, list[str]]:
    """What was typed, as a prompt and answers.

    Raises:
        UserError: an empty or very long text, fewer than two answers, or two equal ones; the field is named as on the
            page.
    """
    dialogue = checked_prompt(prompt)
    remedy = "write one, or remove the row"
    given = [_text(answer, f"Answer {letter}", remedy) for letter, answer in zip(LETTERS, answers, strict=False)]
    if len(given) < FEWEST:
        raise UserError(f"{FEWEST} are needed to compare", "add another one", field="Answers")
    for i, one in enumerate(given):
        if one in given[:i]:
            problem = f"is the same as answer {LETTERS[given.index(one)]}"
            raise UserError(problem, "change one of them, or remove the row", field=f"Answer {LETTERS[i]}")
    return dialogue, given


def _text(value: str | None, field: str, remedy: str) -> str:
    text = (value or "").strip()
    if not text:
        raise UserError("is empty", remedy, field=field)
    if len(text) > LONGEST:
        raise UserError(f"has {len(text):,} characters", f"shorten it to {LONGEST:,}", field=field)
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError("holds half of a character", "type it again", field=field)
    return text


def prompt_of(text: str) -> Prompt:
    """A prompt as it is typed: text, or a dialogue whose turns begin with ``Human:`` and ``Assistant:``."""
    found = parse_dialogue(f"\n\n{text}\n\nAssistant: .") if text.startswith("Human:") else None
    return found[0] if found else as_prompt(text)


def text_of(prompt: Prompt) -> str:
    """The prompt as somebody would type it; the inverse of `prompt_of`, except for system turns."""
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{'Assistant' if m.role == 'assistant' else 'Human'}: {m.content}" for m in prompt)


def blended(world: World, weights: Sequence[float]) -> User:
    """A user between the prototypes.

    Args:
        weights: (M,) not negative, of any sum above 0; the page's sliders.

    Raises:
        UserError: all weights are 0.
    """
    total = sum(weights)
    if total <= 0:
        raise UserError("all are 0", "move at least one up", field="Blend")
    return world.selector.blend({k: w / total for k, w in enumerate(weights) if w > 0})
