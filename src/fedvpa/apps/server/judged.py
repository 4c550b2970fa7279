"""Judgements of every kind, and questions, as they are sent to the service."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AliasChoices, Discriminator, Field, Tag, model_validator

from fedvpa.apps.server.fields import LARGEST, PromptField, Strict, Text, read
from fedvpa.preferences.examples import Example, Question
from fedvpa.preferences.schema import RATING, VOTE, Item, Pair

Margin = Annotated[float, Field(gt=0, le=LARGEST, description="Strength of the choice, against the others'.")]
Judged = Annotated[
    Text, Field(validation_alias=AliasChoices("text", "completion", "response"), description="Or completion, response.")
]


class ChosenIn(Strict):
    """A choice, the preferred response by its name."""

    prompt: PromptField
    chosen: Text
    rejected: Text
    margin: Margin | None = None

    def example(self) -> Example:
        prompt, (chosen, rejected) = read(self.prompt, {"chosen": self.chosen, "rejected": self.rejected})
        return Example.choice(Pair(prompt, chosen, rejected), 1.0, self.margin)

    @property
    def equal(self) -> tuple[str, str] | None:
        """A field that must differ from another one, and does not."""
        return ("rejected", "chosen") if self.chosen.split() == self.rejected.split() else None


class ChoiceIn(Strict):
    """A choice, the preferred response by its place."""

    prompt: PromptField
    a: Text
    b: Text
    preferred: Literal["a", "b"]
    margin: Margin | None = None

    def example(self) -> Example:
        prompt, (a, b) = read(self.prompt, {"a": self.a, "b": self.b})
        pair = Pair(prompt, a, b)
        return Example.choice(pair, 1.0 if self.preferred == "a" else -1.0, self.margin)

    @property
    def equal(self) -> tuple[str, str] | None:
        return ("b", "a") if self.a.split() == self.b.split() else None


class ItemIn(Strict):
    """One response by itself."""

    prompt: PromptField | None = None
    text: Judged
    equal: ClassVar[None] = None

    @property
    def item(self) -> Item:
        prompt, (text,) = read(self.prompt, {"text": self.text})
        return Item(prompt, text)


class VoteIn(ItemIn):
    """Yes or no to a response: exactly one of ``label`` and ``vote``."""

    label: bool | None = None
    vote: Literal[1, -1] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.label is None) == (self.vote is None):
            raise ValueError("give exactly one of label and vote")
        return self

    def example(self) -> Example:
        return Example(self.item, None, VOTE, 1.0 if self.label or self.vote == 1 else -1.0)


class RatingIn(ItemIn):
    """A number for a response, on the scale of the ratings in the training data."""

    rating: Annotated[float, Field(ge=-1e6, le=1e6)]

    def example(self) -> Example:
        return Example(self.item, None, RATING, self.rating)


class QuestionPair(Strict):
    """Two responses that somebody could choose between."""

    prompt: PromptField
    a: Text
    b: Text

    def question(self) -> Question:
        prompt, (a, b) = read(self.prompt, {"a": self.a, "b": self.b})
        return Question(Item(prompt, a), Item(prompt, b))

    @property
    def equal(self) -> tuple[str, str] | None:
        return ("b", "a") if self.a.split() == self.b.split() else None


class QuestionItem(ItemIn):
    """A response that somebody could say yes or no to."""

    def question(self) -> Question:
        return Question(self.item)


def _kind_of_judgement(value: Any) -> str:
    names = value if isinstance(value, dict) else ()
    if "rating" in names:
        return "kind: rating"
    if "label" in names or "vote" in names:
        return "kind: vote"
    return "kind: choice" if "a" in names or "b" in names else "kind: chosen"


def _kind_of_question(value: Any) -> str:
    return "kind: pair" if isinstance(value, dict) and ("a" in value or "b" in value) else "kind: item"


JudgementIn = Annotated[
    Annotated[ChosenIn, Tag("kind: chosen")]
    | Annotated[ChoiceIn, Tag("kind: choice")]
    | Annotated[VoteIn, Tag("kind: vote")]
    | Annotated[RatingIn, Tag("kind: rating")],
    Discriminator(_kind_of_judgement),
]
QuestionIn = Annotated[
    Annotated[QuestionPair, Tag("kind: pair")] | Annotated[QuestionItem, Tag("kind: item")],
    Discriminator(_kind_of_question),
]
