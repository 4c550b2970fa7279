"""The service: its addresses, and what each does with a checked request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import torch
from fastapi import FastAPI, Path, Query
from fastapi.responses import HTMLResponse, JSONResponse, Response

import fedvpa
from fedvpa.apps.blends import parse_blend
from fedvpa.apps.server import errors, openrlhf, page, schemas
from fedvpa.apps.server.additions import additions_of
from fedvpa.apps.server.batching import Batcher
from fedvpa.apps.server.errors import ErrorBody, from_user_error, invalid
from fedvpa.apps.server.fields import prompt_of
from fedvpa.apps.server.guard import Guard
from fedvpa.apps.server.judged import JudgementIn, QuestionIn
from fedvpa.apps.server.metrics import TYPE, Metrics
from fedvpa.apps.server.route import CheckedRoute
from fedvpa.apps.server.settings import Settings
from fedvpa.apps.server.users import Users
from fedvpa.apps.server.work import Choose, Compare, Infer, Reward, Scorer, Work
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Item, Pair, Prompt
from fedvpa.ranking import couples, mean_preferences, ranking, tied
from fedvpa.rewards import EMPTY, bounded, probabilities
from fedvpa.selector import Selector
from fedvpa.user import User

ABOUT = (
    "Infers a user's preference from a few judgements, and scores and ranks responses as that user would. "
    "Texts are not stored; features and the users that you ask to store live in memory only."
)
_STATUSES = {
    400: "The body is not JSON.",
    401: "The token is missing or wrong.",
    404: "No such address or user.",
    408: "The body came too slowly.",
    409: "No room for another user.",
    413: "The body is too large.",
    422: "A field is wrong; its name is in the answer.",
    429: "Too many requests wait; see Retry-After.",
    500: "A fault of the service.",
    503: "Starting or stopping.",
    504: "It took too long.",
}
Id = Annotated[str, Path(max_length=64, description="Of a stored user.")]


class Service:
    """A selector with everything around it that requests share.

    Args:
        threads: as for `Scorer`.
    """

    def __init__(self, selector: Selector, settings: Settings, threads: int | None = None) -> None:
        self.selector, self.settings, self.metrics = selector, settings, Metrics()
        self.scorer = Scorer(selector, settings.memory, settings.batch_chars, threads)
        self.users = Users(selector, settings.users)
        self.additions = additions_of(settings.tokenizer)
        self.batcher = Batcher(
            self.scorer, self.scorer.cost, settings, warm=self.scorer.warm, watch=self.metrics.batched
        )
        self.hash = selector.info.model_hash
        self.metrics.gauge("queue_requests", "Requests that wait for the model.", lambda: self.batcher.waiting)
        self.metrics.gauge("stored_users", "Users that are stored.", lambda: len(self.users.stored))
        stores = self.scorer.stores
        self.metrics.gauge("feature_bytes", "Features kept in memory.", lambda: sum(s.size for s in stores))
        self.metrics.gauge("feature_hits", "Features found in memory, so far.", lambda: sum(s.hits for s in stores))
        seen = selector.backbone.seen
        self.metrics.gauge("texts_cut", "Texts of which not everything was read, so far.", lambda: seen["cut"])
        self.metrics.gauge("feature_misses", "Features computed, so far.", lambda: sum(s.misses for s in stores))

    async def ask(self, work: Work) -> Any:
        """The result of a work, with the model's objections as answers."""
        try:
            return await self.batcher.submit(work)
        except UserError as e:
            raise from_user_error(e) from None

    def check_items(self, field: str, n: int, most: int | None = None) -> None:
        """Raises `ApiError` (422) for too many items."""
        most = self.settings.max_items if most is None else most
        if n > most:
            raise invalid(field, f"has {n} items, {most} are allowed", "send less at a time")

    def check_different(self, field: str, items: Sequence[JudgementIn | QuestionIn]) -> None:
        """Raises `ApiError` (422) for too many items, or one that compares two equal texts."""
        self.check_items(field, len(items))
        for i, item in enumerate(items):
            if item.equal is not None:
                one, other = item.equal
                raise invalid(f"{field}[{i}].{one}", f"equals {other}", "remove the example")

    def check_chars(self, field: str, texts: Iterable[tuple[Prompt, str]]) -> None:
        """Raises `ApiError` (422) for too much text."""
        chars, most = sum(len(r) + sum(len(m.content) for m in p) for p, r in texts), self.settings.max_chars
        if chars > most:
            raise invalid(field, f"{chars:,} characters, {most:,} are allowed", "send less at a time")

    def check_rewards(self, field: str) -> None:
        """Raises `ApiError` (422) where a single response has no reward (`Selector.rewards`)."""
        if self.selector.info.config.backbone.choice_logits:
            raise invalid(field, "this selector compares two responses and has no reward for one", "use /v1/rank")


def portions(rows: Sequence[int], texts: Sequence[tuple[Prompt, str]], limits: Settings) -> Iterator[list[int]]:
    """Rows in portions of as many items and characters as other requests may have, or a single row."""
    part: list[int] = []
    chars = 0
    for i in rows:
        prompt, response = texts[i]
        more = len(response) + sum(len(m.content) for m in prompt)
        if part and (len(part) == limits.max_items or chars + more > limits.max_chars):
            yield part
            part, chars = [], 0
        part.append(i)
        chars += more
    if part:
        yield part


def create_app(service: Service) -> FastAPI:
    """The ASGI application of a service."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await asyncio.to_thread(service.batcher.close)

    app = FastAPI(
        title="fedvpa serve",
        description=ABOUT,
        version=fedvpa.__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    errors.install(app)
    app.router.route_class = CheckedRoute
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    _add_scoring(app, service)
    _add_users(app, service)
    _add_asking(app, service)
    _add_rewards(app, service)
    _add_operations(app, service)
    return app


def _answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {s: {"model": ErrorBody, "description": _STATUSES[s]} for s in (401, *statuses)}


_ASKED = _answers(400, 408, 413, 422, 429, 500, 503, 504)


def _add_users(app: FastAPI, service: Service) -> None:
    @app.post("/v1/users", response_model=schemas.UsersResponse, responses={**_ASKED, **_answers(404, 409)})
    async def infer_user(request: schemas.UsersRequest) -> Any:
        """Infer a user's latent from a few judgements, or update one. Nothing is stored unless ``store`` is true."""
        service.check_different("examples", request.examples)
        examples = tuple(e.example() for e in request.examples)
        service.check_chars("examples", Infer(examples, None).texts)
        name = None if request.user is None else request.user.id
        while True:
            before = None if request.user is None else service.users.resolve(request.user)
            user: User = await service.ask(Infer(examples, request.inference, before))
            if name is None or before is None:
                name = service.users.stored.add(user) if request.store else None
                break
            if service.users.stored.replace(name, before, user):
                break  # else another request has updated it meanwhile: these judgements come on top
        return JSONResponse({"id": name, "user": user.model_dump(exclude_none=True)})

    @app.get("/v1/users/{id}", response_model=schemas.UsersResponse, responses=_answers(404, 422))
    async def stored_user(id: Id) -> Any:
        """A stored user's latent."""
        return JSONResponse({"id": id, "user": service.users.stored.get(id).model_dump(exclude_none=True)})

    @app.delete("/v1/users/{id}", status_code=204, responses=_answers(404, 422))
    async def forget_user(id: Id) -> None:
        """Forget a stored user."""
        service.users.stored.remove(id)


def _add_scoring(app: FastAPI, service: Service) -> None:
    @app.post("/v1/score", response_model=schemas.ScoreResponse, responses={**_ASKED, **_answers(404)})
    async def score(request: schemas.ScoreRequest) -> Any:
        """Probabilities of pairs, or rewards of single responses, for a user."""
        user = service.users.resolve(request.user)
        if request.pairs is not None:
            service.check_items("pairs", len(request.pairs))
            pairs = Compare(tuple(p.pair for p in request.pairs), user)
            service.check_chars("pairs", pairs.texts)
            return JSONResponse({"p_a": await service.ask(pairs), "rewards": None, "model_hash": service.hash})
        if request.texts is not None:
            field, texts = "texts", [t.item for t in request.texts]
        else:
            assert request.prompt is not None
            assert request.responses is not None
            prompt = prompt_of(request.prompt)
            field, texts = "responses", [Item(prompt, r) for r in request.responses]
        service.check_rewards(field)
        service.check_items(field, len(texts))
        service.check_chars(field, texts)
        prompts, responses = zip(*texts, strict=True)
        rewards = await service.ask(Reward(prompts, responses, user))
        return JSONResponse({"p_a": None, "rewards": rewards, "model_hash": service.hash})

    @app.post("/v1/rank", response_model=schemas.RankResponse, responses={**_ASKED, **_answers(404)})
    async def rank(request: schemas.RankRequest) -> Any:
        """Responses to one prompt, best first for a user."""
        user, n = service.users.resolve(request.user), len(request.responses)
        service.check_items("responses", n, service.settings.max_responses)
        prompt = prompt_of(request.prompt)
        service.check_chars("responses", ((prompt, r) for r in request.responses))
        pairs = tuple(Pair(prompt, request.responses[i], request.responses[j]) for i, j in couples(n))
        p = torch.tensor(await service.ask(Compare(pairs, user)) if pairs else [], dtype=torch.float64)
        ranked = [{"index": i, "score": s} for i, s in ranking(tied(mean_preferences(n, p), request.responses))]
        return JSONResponse({"ranking": ranked, "model_hash": service.hash})


def _add_asking(app: FastAPI, service: Service) -> None:
    @app.post("/v1/ask", response_model=schemas.AskResponse, responses={**_ASKED, **_answers(404)})
    async def ask(request: schemas.AskRequest) -> Any:
        """The questions of a pool whose answers tell most about a user, in the order in which to ask them."""
        user = service.users.resolve(request.user)
        service.check_different("pool", request.pool)
        work = Choose(tuple(q.question() for q in request.pool), user, request.n)
        service.check_chars("pool", work.texts)
        found = [{"index": a.row, "bits": a.bits} for a in await service.ask(work)]
        return JSONResponse({"questions": found, "model_hash": service.hash})


def _add_rewards(app: FastAPI, service: Service) -> None:
    def whose(user: str | None, prototype: int | None, blend: str | None) -> User:
        if sum(v is not None for v in (user, prototype, blend)) > 1:
            raise invalid("user", "give one of user, prototype and blend")
        if user is not None:
            return service.users.stored.get(user, "user")
        if prototype is not None:
            return service.users.prototype(prototype, "prototype")
        if blend is not None:
            try:
                return service.users.blend(parse_blend(blend, "blend"), "blend")
            except UserError as e:
                raise from_user_error(e) from None
        return service.users.average

    def each_user(labels: list[Any] | None, n: int) -> list[User]:
        """The user that each row's label names: a stored one's id, a prototype's number, or a blend."""
        if labels is None or len(labels) != n:
            problem = "is missing" if labels is None else f"has {len(labels)} items, query has {n}"
            raise invalid("labels", problem, "let the trainer send a label with each row, or leave users away")
        found = {str(label): service.users.named(str(label), f"labels[{i}]") for i, label in enumerate(labels)}
        return [found[str(label)] for label in labels]

    @app.post("/get_reward/", include_in_schema=False)
    @app.post("/get_reward", response_model=schemas.RewardResponse, responses={**_ASKED, **_answers(404)})
    async def get_reward(
        request: schemas.RewardRequest,
        user: Annotated[str | None, Query(max_length=64, description="Id of a stored user.")] = None,
        prototype: Annotated[int | None, Query(ge=0, le=10_000, description="Number of a prototype.")] = None,
        blend: Annotated[str | None, Query(max_length=1000, description="Prototypes, as 0:0.3,1:0.7.")] = None,
        standardised: Annotated[bool, Query(description="Mean 0 and variance 1 over the training pairs.")] = False,
        users: Annotated[Literal["labels"] | None, Query(description="labels: they name each row's user.")] = None,
    ) -> Any:
        """Rewards for OpenRLHF's `--remote_rm_url`. The user stands in the address, or in the labels of the rows."""
        n = len(request.query)
        if users is None:
            who = [whose(user, prototype, blend)] * n
        elif user is None and prototype is None and blend is None:
            who = each_user(request.labels, n)
        else:
            raise invalid("users", "give one of users, user, prototype and blend")
        service.check_rewards("query")
        service.check_items("query", n, service.settings.max_rollout)
        if request.prompts is not None and len(request.prompts) != n:
            raise invalid("prompts", f"has {len(request.prompts)} items, query has {n}")
        prompts: list[str | None] = [None] * n if request.prompts is None else [*request.prompts]
        texts = [
            openrlhf.split(q, p, i, service.additions)
            for i, (q, p) in enumerate(zip(request.query, prompts, strict=True))
        ]
        try:
            mean, deviation = service.selector.reward_scale if standardised else (0.0, 1.0)
        except UserError as e:
            raise from_user_error(e) from None
        rewards = torch.full((n,), EMPTY, dtype=torch.float64)
        given = [i for i, (_, response) in enumerate(texts) if response]
        rows: dict[int, list[int]] = {}
        for i in given:
            rows.setdefault(id(who[i]), []).append(i)
        for own in (part for all_rows in rows.values() for part in portions(all_rows, texts, service.settings)):
            work = Reward(tuple(texts[i][0] for i in own), tuple(texts[i][1] for i in own), who[own[0]])
            rewards[own] = bounded(torch.tensor(await service.ask(work)))
        found, scores = ((rewards - mean) / deviation).tolist(), probabilities(rewards).tolist()
        return JSONResponse({"rewards": found, "scores": scores, "extra_logs": {"preferred_to_average": scores}})


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/v1/model", response_model=schemas.ModelResponse, responses=_answers())
    async def model() -> Any:
        """What is served, and the limits of a request."""
        info, s = service.selector.info, service.settings
        names = info.config.backbone.models  # a folder's place is nobody's business
        return JSONResponse(
            {
                "method": info.method,
                "model_hash": service.hash,
                "latent_dim": service.users.dim,
                "prototypes": len(service.users.prototypes),
                "backbone": ", ".join(n.rsplit("/", 1)[-1] if n.startswith(("/", ".", "~")) else n for n in names),
                "max_items": s.max_items,
                "max_responses": s.max_responses,
                "max_chars": s.max_chars,
                "max_rollout": s.max_rollout,
                "max_rollout_bytes": s.max_rollout_bytes,
                "max_bytes": s.max_bytes,
            }
        )

    @app.get("/healthz", response_model=schemas.Health)
    async def healthz() -> Any:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", response_model=schemas.Health, responses={503: {"model": schemas.Health}})
    async def readyz() -> Any:
        """The language model is loaded, and requests are taken."""
        ready = service.batcher.ready.is_set()
        return JSONResponse({"status": "ok" if ready else "loading"}, 200 if ready else 503)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.page(), headers={"content-type": TYPE})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page.render(app.openapi()), headers=page.HEADERS)
