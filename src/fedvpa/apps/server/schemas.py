"""What is sent to the service and what comes back; the OpenAPI page is made of these classes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from fedvpa.preferences.examples import Example, Question
from fedvpa.preferences.jsonl import NO_PROMPT
from fedvpa.preferences.schema import RATING, VOTE, Item, Pair, Prompt, as_prompt

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
        return Example.choice(Pair(prompt_of(self.prompt), self.chosen, self.rejected), 1.0, self.margin)

    @property
    def equal(self) -> tuple[str, str] | None:
        """A field that must differ from another one, and does not."""
        return ("rejected", "chosen") if self.chosen == self.rejected else None


class ChoiceIn(Strict):
    """A choice, the preferred response by its place."""

    prompt: PromptField
    a: Text
    b: Text
    preferred: Literal["a", "b"]
    margin: Margin | None = None

    def example(self) -> Example:
        pair = Pair(prompt_of(self.prompt), self.a, self.b)
        return Example.choice(pair, 1.0 if self.preferred == "a" else -1.0, self.margin)

    @property
    def equal(self) -> tuple[str, str] | None:
        return ("b", "a") if self.a == self.b else None


class ItemIn(Strict):
    """One response by itself."""

    prompt: PromptField | None = None
    text: Judged
    equal: ClassVar[None] = None

    @property
    def item(self) -> Item:
        return Item(NO_PROMPT if self.prompt is None else prompt_of(self.prompt), self.text)


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
        prompt = prompt_of(self.prompt)
        return Question(Item(prompt, self.a), Item(prompt, self.b))

    @property
    def equal(self) -> tuple[str, str] | None:
        return ("b", "a") if self.a == self.b else None


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


class PairIn(Strict):
    """Two responses to compare."""

    prompt: PromptField
    a: Text
    b: Text


class TextIn(Strict):
    """One response to a prompt."""

    prompt: PromptField
    response: Text


class PosteriorIn(Strict):
    """A mixture of Gaussians, as `POST /v1/users` gives it for a model that takes judgements."""

    version: Literal[1] = 1
    weights: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1, max_length=256)]
    means: Annotated[list[list[Bounded]], Field(max_length=256)]
    roots: Annotated[list[list[Annotated[float, Field(ge=-1e6, le=1e6)]]], Field(max_length=256)]


class Latent(Strict):
    """A user's latent, as `POST /v1/users` and `fedvpa personalize` give it; ``mean`` alone is enough."""

    mean: list[Bounded]
    log_var: list[Bounded] | None = None
    particles: Annotated[list[list[Bounded]], Field(max_length=256)] | None = None
    weights: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    posterior: PosteriorIn | None = None
    pairs: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    inference: Annotated[str, Field(max_length=100)] | None = None
    model_hash: Annotated[str, Field(max_length=64)] | None = None


class UserRef(Strict):
    """Whose preference counts: exactly one of the fields. Without a user it is the average one."""

    id: Annotated[str, Field(max_length=64, description="of a stored user")] | None = None
    prototype: Annotated[int, Field(ge=0, le=10_000)] | None = None
    blend: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,4}$")], Annotated[float, Field(ge=0, le=1)]],
            Field(min_length=1, max_length=100, description="Prototypes with weights that sum to 1."),
        ]
        | None
    ) = None
    latent: Latent | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(v is not None for v in (self.id, self.prototype, self.blend, self.latent)) != 1:
            raise ValueError("give exactly one of id, prototype, blend and latent")
        return self


class UsersRequest(Strict):
    """A few judgements of one user, of any kind and mixed. With ``user``, they are added to what is known of it."""

    examples: Annotated[list[JudgementIn], Field(min_length=1)]
    inference: Annotated[str, Field(max_length=20, description="As the method names it.")] | None = None
    user: UserRef | None = Field(None, description="Whom to update; a stored one keeps its id.")
    store: bool = Field(False, description="Keep the latent (not the texts) in memory, under an id that comes back.")

    @model_validator(mode="after")
    def _either(self) -> Self:
        if self.user is not None and self.inference is not None:
            raise ValueError("an inference is chosen when the user is made; leave it out")
        return self


class AskRequest(Strict):
    """Questions of which the best are wanted."""

    pool: Annotated[list[QuestionIn], Field(min_length=1, description="What may be asked.")]
    n: Annotated[int, Field(ge=1, le=100, description="How many.")] = 1
    user: UserRef | None = None


class Asked(BaseModel):
    """A question: its place in the pool, and the information about the user expected from the answer."""

    index: int
    bits: float


class AskResponse(BaseModel):
    """In the order in which to ask."""

    questions: list[Asked]
    model_hash: str


class PosteriorOut(BaseModel):
    """A mixture of Gaussians: weights, means, and the lower triangles of the precisions' Cholesky factors by row."""

    version: int
    weights: list[float]
    means: list[list[float]]
    roots: list[list[float]]


class UserOut(BaseModel):
    """A user's latent under the served model."""

    mean: list[float]
    log_var: list[float]
    pairs: int
    model_hash: str
    inference: str | None = None
    particles: list[list[float]] | None = None
    weights: list[float] | None = None
    posterior: PosteriorOut | None = None


class UsersResponse(BaseModel):
    """The posterior; ``id`` only if it was stored."""

    id: str | None
    user: UserOut


class ScoreRequest(Strict):
    """Exactly one of ``pairs``, ``texts``, or ``prompt`` with ``responses``."""

    pairs: Annotated[list[PairIn], Field(min_length=1)] | None = None
    texts: Annotated[list[TextIn], Field(min_length=1)] | None = None
    prompt: PromptField | None = None
    responses: Annotated[list[Text], Field(min_length=1)] | None = None
    user: UserRef | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(v is not None for v in (self.pairs, self.texts, self.responses)) != 1:
            raise ValueError("give exactly one of pairs, texts and responses")
        if (self.prompt is None) != (self.responses is None):
            raise ValueError("prompt and responses belong together")
        return self


class ScoreResponse(BaseModel):
    """``p_a``: p(a > b) of each pair. ``rewards``: of each response, in nats (log-odds against the average one)."""

    p_a: list[float] | None = None
    rewards: list[float] | None = None
    model_hash: str


class RankRequest(Strict):
    """Responses to one prompt."""

    prompt: PromptField
    responses: Annotated[list[Text], Field(min_length=1)]
    user: UserRef | None = None


class Ranked(BaseModel):
    """One response: its place in the request, and its mean probability to be preferred to another response."""

    index: int
    score: float


class RankResponse(BaseModel):
    """Best first."""

    ranking: list[Ranked]
    model_hash: str


class RewardRequest(BaseModel):
    """What OpenRLHF sends; older versions send ``query`` only."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    query: Annotated[list[str], Field(min_length=1, description="Prompts with their responses, as rendered.")]
    prompts: list[str] | None = None
    labels: list[Any] | None = Field(None, description="Not used.")


class RewardResponse(BaseModel):
    """``rewards`` in nats; ``scores`` between 0 and 1: the probability to be preferred to the average response."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class ModelResponse(BaseModel):
    """What is served."""

    method: str
    model_hash: str
    latent_dim: int
    prototypes: int
    backbone: str
    max_items: int
    max_responses: int
    max_chars: int
    max_bytes: int


class Health(BaseModel):
    """``ok``, or why not."""

    status: str
