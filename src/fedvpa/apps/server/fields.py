"""What the fields of requests have in common: texts, prompts, bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from fedvpa.preferences.schema import Prompt, as_prompt

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
    return as_prompt(value if isinstance(value, str) else [m.model_dump() for m in value])
