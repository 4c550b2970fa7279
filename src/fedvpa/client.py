"""A client of `fedvpa serve`; it needs httpx and nothing of torch.

from fedvpa.client import Client

client = Client("http://127.0.0.1:8400")
ada = client.infer_user([{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}])
client.rank("How are you?", ["Fine.", "Fine, thanks for asking!"], user=ada)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from fedvpa.errors import UserError

try:
    import httpx
except ModuleNotFoundError:
    raise UserError("httpx is not installed", 'pip install "fedvpa[serve]"') from None

if TYPE_CHECKING:
    from fedvpa.rewards import RewardFunction

AGAIN = (429, 503)
"""Answers after which a request is sent again: the service is busy, or is starting."""

LONGEST_PAUSE = 30.0
_CHECK = "check the address: is it `fedvpa serve`?"


class ServiceError(UserError):
    """An answer that is no success, or none at all.

    Attributes:
        status: HTTP status; None if there was no answer.
        field, problem, remedy: what the service says of it.
    """

    def __init__(self, status: int | None, problem: str, remedy: str | None = None, field: str | None = None) -> None:
        super().__init__(problem, remedy, field=field)
        self.status = status


@dataclass(frozen=True)
class RemoteUser:
    """A user that the service has inferred.

    Attributes:
        mean, log_var: the posterior; pairs: how many judgements it was inferred from.
        model_hash: the model that it belongs to.
        latent: all that the service needs to know the user again, as JSON (a file of `fedvpa personalize` has it too).
        id: of a stored user, else None.
    """

    mean: tuple[float, ...]
    log_var: tuple[float, ...]
    pairs: int
    model_hash: str
    latent: Mapping[str, Any] = field(repr=False)
    id: str | None = None


@dataclass(frozen=True)
class Ranked:
    """A response, its mean probability to be preferred to another one, and its place among those given."""

    response: str
    score: float
    index: int


@dataclass(frozen=True)
class Asked:
    """A question, the information about the user expected from its answer, and its place in the pool."""

    question: Mapping[str, Any]
    bits: float
    index: int


_QUESTION = ("prompt", "text", "completion", "response", "a", "b")
_JUDGEMENT = (*_QUESTION, "chosen", "rejected", "preferred", "label", "vote", "rating", "margin")

Prompt = str | Sequence[Mapping[str, str]]
UserLike = RemoteUser | str | int | Mapping[int, float] | None
"""Whose preference counts: an inferred user, a stored user's id, a prototype, a blend of prototypes, or nobody's."""


class Client:
    """The service at an address.

    Args:
        url: where `fedvpa serve` listens.
        token: what it asks for.
        timeout: seconds to wait for an answer.
        retries: how often a request is sent again when the service is busy or starting; it says how long to wait.
        sleep: waits (for tests).

    Raises:
        ServiceError: from every method, if the service refuses a request or does not answer.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8400",
        token: str | None = None,
        *,
        timeout: float = 90.0,
        retries: int = 5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self.url, self.retries, self._sleep = url, retries, sleep
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        except (httpx.InvalidURL, UnicodeEncodeError) as e:
            raise ServiceError(
                None, f"{url}: cannot be used ({e})", "give an address such as http://host:8400"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def infer_user(
        self, examples: Iterable[Mapping[str, Any]], inference: str | None = None, *, store: bool = False
    ) -> RemoteUser:
        """Infers a user from judgements of any kind, mixed freely (`Selector.infer_user`).

        Args:
            examples: choices (``prompt``, ``chosen``, ``rejected``; or ``prompt``, ``a``, ``b``, ``preferred``), votes
                (``prompt``, ``completion``, ``label``; or ``vote``, 1 or -1), ratings (``prompt``, ``text``,
                ``rating``). Other columns are not sent.
            inference: as the method names it; by default what validation users chose.
            store: whether the service keeps the latent (in memory, until it ends) under `RemoteUser.id`.
        """
        body = {"examples": _rows(examples, _JUDGEMENT), "inference": inference, "store": store}
        return _user(self._ask("POST", "/v1/users", body))

    def update_user(self, user: RemoteUser | str, examples: Iterable[Mapping[str, Any]]) -> RemoteUser:
        """The user after further judgements (`Selector.update_user`); a stored one is changed where it is stored."""
        body = {"examples": _rows(examples, _JUDGEMENT), "user": _reference(user)}
        return _user(self._ask("POST", "/v1/users", body))

    def ask(self, pool: Sequence[Mapping[str, Any]], user: UserLike = None, n: int = 1) -> list[Asked]:
        """The n questions of a pool whose answers tell most about a user, in the order to ask them (`Selector.ask`).

        Args:
            pool: each ``prompt``, ``text`` (yes or no) or ``prompt``, ``a``, ``b`` (which one).
        """
        body = {"pool": _rows(pool, _QUESTION), "user": _reference(user), "n": n}
        found = self._ask("POST", "/v1/ask", body)["questions"]
        return [Asked(pool[q["index"]], float(q["bits"]), int(q["index"])) for q in found]

    def stored_user(self, id: str) -> RemoteUser:
        """A stored user."""
        return _user(self._ask("GET", f"/v1/users/{quote(id, safe='')}"))

    def forget_user(self, id: str) -> None:
        """Lets the service forget a stored user."""
        self._ask("DELETE", f"/v1/users/{quote(id, safe='')}")

    def prefer(self, prompt: Prompt, a: str, b: str, user: UserLike = None) -> float:
        """p(a > b | prompt, user)."""
        return self.score([{"prompt": prompt, "a": a, "b": b}], user)[0]

    def score(self, pairs: Sequence[Mapping[str, Any]], user: UserLike = None) -> list[float]:
        """p(a > b) of pairs, each with ``prompt``, ``a`` and ``b``."""
        rows = [{k: p[k] for k in ("prompt", "a", "b") if k in p} for p in pairs]
        found = self._ask("POST", "/v1/score", {"pairs": rows, "user": _reference(user)})["p_a"]
        return [float(p) for p in found]

    def rewards(self, prompts: Sequence[Prompt], responses: Sequence[str], user: UserLike = None) -> list[float]:
        """The reward of the i-th response to the i-th prompt, in nats (`Selector.rewards`)."""
        texts = [{"prompt": p, "response": r} for p, r in zip(prompts, responses, strict=True)]
        found = self._ask("POST", "/v1/score", {"texts": texts, "user": _reference(user)})["rewards"]
        return [float(r) for r in found]

    def rank(self, prompt: Prompt, responses: Sequence[str], user: UserLike = None) -> list[Ranked]:
        """Responses to one prompt, best first."""
        body = {"prompt": prompt, "responses": list(responses), "user": _reference(user)}
        ranking = self._ask("POST", "/v1/rank", body)["ranking"]
        return [Ranked(responses[r["index"]], float(r["score"]), int(r["index"])) for r in ranking]

    def reward_function(self, user: UserLike = None, empty_reward: float | None = None) -> RewardFunction:
        """A reward function for TRL's trainers (``reward_funcs=client.reward_function(user)``), see `RewardFunction`.

        Args:
            empty_reward: of an empty completion; by default `rewards.EMPTY`.
        """
        import torch  # a trainer has it; the client alone does not need it

        from fedvpa.rewards import EMPTY, RewardFunction

        def score(prompts: Sequence[Any], responses: Sequence[str]) -> torch.Tensor:
            dialogues = [[{"role": m.role, "content": m.content} for m in prompt] for prompt in prompts]
            return torch.tensor(self.rewards(dialogues, responses, user), dtype=torch.float64)

        return RewardFunction(score, EMPTY if empty_reward is None else empty_reward)

    def model(self) -> dict[str, Any]:
        """What is served, and the limits of a request."""
        return dict(self._ask("GET", "/v1/model"))

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        for left in range(self.retries, -1, -1):
            try:
                answer = self._http.request(method, path, json=body)
            except httpx.TimeoutException:
                raise ServiceError(None, f"{self.url}: no answer in time", "wait longer (timeout)") from None
            except (httpx.HTTPError, httpx.InvalidURL) as e:
                remedy = "start the service with `fedvpa serve RUN`, or check the address"
                raise ServiceError(None, f"{self.url}: no connection ({e})", remedy) from None
            except ValueError as e:  # NaN, or half of a surrogate pair
                raise ServiceError(None, f"the request cannot be written as JSON ({e})", "check its values") from None
            if answer.is_success:
                return _json(answer) if answer.content else None
            if answer.status_code not in AGAIN or not left:
                raise _error(answer)
            self._sleep(_pause(answer))
        raise AssertionError("unreachable")


def _rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """What the service knows of each row."""
    return [{k: row[k] for k in columns if k in row} for row in rows]


def _reference(user: UserLike) -> dict[str, Any] | None:
    """The user as the service names it."""
    match user:
        case None:
            return None
        case RemoteUser(id=str(name)):
            return {"id": name}
        case RemoteUser():
            return {"latent": dict(user.latent)}
        case str():
            return {"id": user}
        case int():
            return {"prototype": user}
    return {"blend": {str(k): w for k, w in user.items()}}


def _user(found: Mapping[str, Any]) -> RemoteUser:
    user = found["user"]
    mean, log_var = tuple(user["mean"]), tuple(user["log_var"])
    return RemoteUser(mean, log_var, int(user["pairs"]), user["model_hash"], user, found["id"])


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        raise ServiceError(answer.status_code, "the answer is not JSON", _CHECK) from None


def _error(answer: httpx.Response) -> ServiceError:
    try:
        error = answer.json()["error"]
        return ServiceError(answer.status_code, error["message"], error["remedy"], error["field"])
    except (ValueError, KeyError, TypeError):
        return ServiceError(
            answer.status_code, f"HTTP {answer.status_code}", "check the address: is it `fedvpa serve`?"
        )


def _pause(answer: httpx.Response) -> float:
    """Seconds that the service asks to wait."""
    try:
        return min(LONGEST_PAUSE, max(0.1, float(answer.headers.get("retry-after", "1"))))
    except ValueError:
        return 1.0
