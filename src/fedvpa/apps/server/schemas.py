"""What is sent to the service and what comes back; the OpenAPI page is made of these classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

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


def _kind(value: Any) -> str:
    return "messages" if isinstance(value, list) else "text"


PromptField = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[TurnIn], Field(min_length=1), Tag("messages")],
    Discriminator(_kind),
    Field(description="A text (one user turn), or messages that end before the response."),
]


def prompt_of(value: str | list[TurnIn]) -> Prompt:
    return as_prompt(value if isinstance(value, str) else [m.model_dump() for m in value])


class Example(Strict):
    """One comparison that a user has made."""

    prompt: PromptField
    chosen: Text
    rejected: Text


class PairIn(Strict):
    """Two responses to compare."""

    prompt: PromptField
    a: Text
    b: Text


class TextIn(Strict):
    """One response to a prompt."""

    prompt: PromptField
    response: Text


class Latent(Strict):
    """A user's latent, as `POST /v1/users` and `fedvpa personalize` give it; ``mean`` alone is enough."""

    mean: list[Bounded]
    log_var: list[Bounded] | None = None
    particles: Annotated[list[list[Bounded]], Field(max_length=256)] | None = None
    weights: list[Annotated[float, Field(ge=0, le=1)]] | None = None
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
    """A few comparisons of one user."""

    examples: Annotated[list[Example], Field(min_length=1)]
    inference: Annotated[str, Field(max_length=20, description="amortised, mixture or refined")] | None = None
    store: bool = Field(False, description="Keep the latent (not the texts) in memory, under an id that comes back.")


class UserOut(BaseModel):
    """A user's latent under the served model."""

    mean: list[float]
    log_var: list[float]
    pairs: int
    model_hash: str
    inference: str | None = None
    particles: list[list[float]] | None = None
    weights: list[float] | None = None


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
