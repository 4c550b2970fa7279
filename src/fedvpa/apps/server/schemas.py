"""What is sent to the service and what comes back; the OpenAPI page is made of these classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedvpa.apps.server.fields import Bounded, PromptField, Strict, Text, read
from fedvpa.apps.server.judged import JudgementIn, QuestionIn
from fedvpa.preferences.schema import Item, Pair


class PairIn(Strict):
    """Two responses to compare."""

    prompt: PromptField
    a: Text
    b: Text

    @property
    def pair(self) -> Pair:
        prompt, (a, b) = read(self.prompt, {"a": self.a, "b": self.b})
        return Pair(prompt, a, b)


class TextIn(Strict):
    """One response to a prompt."""

    prompt: PromptField
    response: Text

    @property
    def item(self) -> Item:
        prompt, (text,) = read(self.prompt, {"response": self.response})
        return Item(prompt, text)


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

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: Annotated[list[str], Field(min_length=1, description="Prompts with their responses, as rendered.")]
    prompts: list[str] | None = None
    labels: list[Any] | None = Field(None, description="Each row's user, where the address says users=labels.")


class RewardResponse(BaseModel):
    """``rewards`` between -10 and 10 (10 tanh(log-odds / 10)), or standardised; ``scores`` between 0 and 1: the
    probability to be preferred to the average response."""

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
    max_rollout: int
    max_rollout_bytes: int


class Health(BaseModel):
    """``ok``, or why not."""

    status: str
