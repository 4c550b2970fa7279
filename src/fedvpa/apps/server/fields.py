"""What the fields of requests have in common: texts, prompts, bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from fedvpa.apps.server.errors import from_user_error
from fedvpa.errors import UserError
from fedvpa.preferences.jsonl import NO_PROMPT
from fedvpa.preferences.repeats import dialogue_of, read_prompt
from fedvpa.preferences.schema import Prompt

LARGEST = 1000.0
"""Bound on what a caller may send as a latent: no product with the parameters overflows."""

Bounded = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Strict(BaseModel):
    """A request; an unknown field is an error and not ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class TurnIn(Strict):
    """One turn of a dialogue."""

    role: Literal["system", "user", "assistant"]
    content: Text


def _kind_of_prompt(value: Any) -> str:
    return "kind: messages" if isinstance(value, list) else "kind: text"


PromptField = Annotated[
    Annotated[Text, Tag("kind: text")] | Annotated[list[TurnIn], Field(min_length=1), Tag("kind: messages")],
    Discriminator(_kind_of_prompt),
    Field(description="A text (one user turn), or messages that end before the response."),
]


def prompt_of(value: str | list[TurnIn]) -> Prompt:
    """The dialogue, read as training data are."""
    return read(value, {})[0]


def read(prompt: str | list[TurnIn] | None, texts: Mapping[str, str]) -> tuple[Prompt, tuple[str, ...]]:
    """The dialogue and the responses to it, by the name of their field, read as training data are.

    Raises:
        ApiError: they cannot be read (422).
    """
    given = prompt if prompt is None or isinstance(prompt, str) else [m.model_dump() for m in prompt]
    try:
        if not texts:
            return read_prompt(given, Path(), 1), ()
        found = dialogue_of({"prompt": given, **texts}, tuple(texts), Path(), 1)
    except UserError as e:
        raise from_user_error(e) from None
    return found.prompt or NO_PROMPT, tuple(text.strip() for text in found.responses)
