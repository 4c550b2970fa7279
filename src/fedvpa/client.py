"""A client of `fedvpa serve`; it needs httpx and nothing of torch.

from fedvpa.client import Client

client = Client("http://127.0.0.1:8400")
ada = client.infer_user([{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}])
client.rank("How are you?", ["Fine.", "Fine, thanks for asking!"], user=ada)
"""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload
from urllib.parse import quote

from fedvpa.errors import MissingExtra, UserError
from fedvpa.inputs import Rows, is_one, listed, many, name_of, number_of, plain, rows_of, weights_of, whose
from fedvpa.user import User, UserLike

try:
    import httpx
except ModuleNotFoundError:
    raise MissingExtra("httpx", "serve") from None

if TYPE_CHECKING:
    from torch import Tensor

    from fedvpa.rewards import RewardFunction

AGAIN = (429, 503)
"""Answers after which a request is sent again: the service is busy, or is starting."""

LONGEST_PAUSE = 30.0
_CHECK = "check the address: is it `fedvpa serve`?"


SURE_ROWS, SURE_CHARS = 128, 200_000
"""What every service takes in one request; beyond it is asked for its limits."""
PROXIES = tuple(name for upper in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY") for name in (upper, upper.lower()))
"""Variables that name a proxy; none of them has a say about this machine's own addresses."""


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's own, which no proxy can reach for us."""
    try:
        host = httpx.URL(url).host
        return host == "localhost" or host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback
    except (httpx.InvalidURL, ValueError):
        return False


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
RemoteUserLike = UserLike | str
"""Whose preference counts: as for a selector, or a stored user's id."""


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
        self._given: dict[str, Any] = {
            "url": url,
            "token": token,
            "timeout": timeout,
            "retries": retries,
            "sleep": sleep,
        }
        if not isinstance(url, str) or not isinstance(token, str | None):
            raise ServiceError(None, "url and token must be texts", "give an address such as http://host:8400")
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=not is_loopback(url))
        except (ImportError, ValueError) as e:  # what httpx raises for a proxy that it cannot use
            name = next((n for n in PROXIES if os.environ.get(n)), "the proxy's variable")
            remedy = f"unset {name}, or run: pip install 'httpx[socks]'"
            raise ServiceError(None, f"the proxy in {name} cannot be used ({e})", remedy) from None
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

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Client, **self._given), ()

    def infer_user(self, examples: Rows, inference: str | None = None, *, store: bool = False) -> User:
        """Infers a user from judgements of any kind, mixed freely (`Selector.infer_user`).

        Args:
            examples: choices (``prompt``, ``chosen``, ``rejected``; or ``prompt``, ``a``, ``b``, ``preferred``), votes
                (``prompt``, ``completion``, ``label``; or ``vote``, 1 or -1), ratings (``prompt``, ``text``,
                ``rating``). Other columns are not sent.
            inference: as the method names it; by default what validation users chose.
            store: whether the service keeps the latent (in memory, until it ends) under `User.id`.
        """
        body = {"examples": _rows(examples, "examples", _JUDGEMENT), "inference": inference, "store": store}
        return self._user(self._ask("POST", "/v1/users", body))

    def update_user(self, user: RemoteUserLike, examples: Rows) -> User:
        """The user after further judgements (`Selector.update_user`); a stored one is changed where it is stored."""
        body = {"examples": _rows(examples, "examples", _JUDGEMENT), "user": _reference(user)}
        return self._user(self._ask("POST", "/v1/users", body))

    def ask(self, pool: Rows, user: RemoteUserLike = None, n: int = 1) -> list[Asked]:
        """The n questions of a pool whose answers tell most about a user, in the order to ask them (`Selector.ask`).

        Args:
            pool: each ``prompt``, ``text`` (yes or no) or ``prompt``, ``a``, ``b`` (which one).
        """
        given = rows_of(pool, "pool")
        body = {"pool": _rows(given, "pool", _QUESTION), "user": _reference(user), "n": number_of(n, "n")}
        found = self._ask("POST", "/v1/ask", body)["questions"]
        return [Asked(given[q["index"]], float(q["bits"]), int(q["index"])) for q in found]

    def stored_user(self, id: str) -> User:
        """A stored user."""
        return self._user(self._ask("GET", f"/v1/users/{quote(id, safe='')}"))

    def forget_user(self, id: str) -> None:
        """Lets the service forget a stored user."""
        self._ask("DELETE", f"/v1/users/{quote(id, safe='')}")

    @overload
    def prefer(self, prompt: Any, a: str, b: str, user: RemoteUserLike = None) -> float: ...
    @overload
    def prefer(self, prompt: Any, a: Any, b: Any, user: RemoteUserLike = None) -> Any: ...
    def prefer(self, prompt: Any, a: Any, b: Any, user: RemoteUserLike = None) -> Any:
        """p(a > b | prompt, user); of two lists of responses a list of them, with one prompt for all or one each."""
        if is_one(a) and is_one(b):
            return self.score([{"prompt": prompt, "a": a, "b": b}], user)[0]
        left, right = (listed(v, k, "give two texts, or two lists of texts") for k, v in (("a", a), ("b", b)))
        if len(left) != len(right):
            raise UserError(f"{len(right)} for {len(left)} in a", "give lists of the same length", field="b")
        prompts = many(prompt, len(left), "prompt")
        return self.score([{"prompt": p, "a": x, "b": y} for p, x, y in zip(prompts, left, right, strict=True)], user)

    def score(self, pairs: Rows, user: RemoteUserLike = None) -> list[float]:
        """p(a > b) of pairs, each with ``prompt``, ``a`` and ``b``."""
        rows, found = _rows(pairs, "pairs", ("prompt", "a", "b")), []
        for part in self._portions(rows):
            found += self._ask("POST", "/v1/score", {"pairs": part, "user": _reference(user)})["p_a"]
        return [float(p) for p in found]

    def rewards(self, prompts: Any, responses: Sequence[str], user: RemoteUserLike = None) -> list[float]:
        """The reward of the i-th response to the i-th prompt, or all to one, in nats (`Selector.rewards`)."""
        given = listed(responses, "responses", "give a list of texts")
        pairs = zip(many(prompts, len(given), "prompts"), given, strict=True)
        texts = [{"prompt": _turns(p), "response": r} for p, r in pairs]
        found = []
        for part in self._portions(texts):
            found += self._ask("POST", "/v1/score", {"texts": part, "user": _reference(user)})["rewards"]
        return [float(r) for r in found]

    def rank(self, prompt: Any, responses: Sequence[str], user: RemoteUserLike = None) -> list[Ranked]:
        """Responses to one prompt, best first."""
        given = listed(responses, "responses", "give a list of texts")
        body = {"prompt": _turns(prompt), "responses": given, "user": _reference(user)}
        ranking = self._ask("POST", "/v1/rank", body)["ranking"] if given else []
        return [Ranked(given[r["index"]], float(r["score"]), int(r["index"])) for r in ranking]

    def reward_function(
        self,
        user: RemoteUserLike = None,
        empty_reward: float | None = None,
        *,
        users: Mapping[Any, RemoteUserLike] | None = None,
        column: str | None = "user_id",
        name: str | None = None,
    ) -> RewardFunction:
        """A reward function for TRL's trainers (``reward_funcs=client.reward_function(user)``), see `RewardFunction`.

        Args:
            user: whose rewards, for every row alike; users: of each row's own user, under the ids in its ``column``.
            empty_reward: of an empty completion; by default `rewards.EMPTY`.
            column, name: as for `Selector.reward_function`.
        """
        from fedvpa.rewards import EMPTY, RewardFunction, reward_name  # torch: a trainer has it

        empty = EMPTY if empty_reward is None else empty_reward
        if users is None:
            name = name or reward_name("service", whose(user), [self.url, _reference(user), empty])
            score = partial(self._rewards, user=user)
            return RewardFunction(score, empty, name, column=column, chosen=user is not None)
        if user is not None or column is None:
            problem = "user and users exclude each other" if user is not None else "needs the column of each row's user"
            raise UserError(problem, "give users and column", field="users")
        if not isinstance(users, Mapping) or not users:
            raise UserError("must be users under their ids", "infer each with infer_user", field="users")
        each = {name_of(key, "users"): one for key, one in users.items()}
        content = [self.url, {key: _reference(one) for key, one in each.items()}, column, empty]
        name = name or reward_name("service", "users", content)
        by_row = partial(self._rewards_by_user, users=each)
        return RewardFunction(self._rewards, empty, name, by_row, frozenset(each), column)

    def _rewards(self, prompts: Sequence[Any], responses: Sequence[str], user: RemoteUserLike = None) -> Tensor:
        import torch

        return torch.tensor(self.rewards(list(prompts), responses, user), dtype=torch.float64)

    def _rewards_by_user(
        self,
        prompts: Sequence[Any],
        responses: Sequence[str],
        names: Sequence[str],
        users: Mapping[str, RemoteUserLike],
    ) -> Tensor:
        import torch

        found = torch.zeros(len(responses), dtype=torch.float64)
        for name in dict.fromkeys(names):
            rows = [i for i, other in enumerate(names) if other == name]
            found[rows] = self._rewards([prompts[i] for i in rows], [responses[i] for i in rows], users[name])
        return found

    def model(self) -> dict[str, Any]:
        """What is served, and the limits of a request."""
        return dict(self._ask("GET", "/v1/model"))

    def _user(self, found: Mapping[str, Any]) -> User:
        return User.model_validate({**found["user"], "id": found["id"]}).of(self)

    def _portions(self, rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Rows in portions that the service takes in one request, by the limits that it states."""
        if len(rows) <= SURE_ROWS and sum(map(_size, rows)) <= SURE_CHARS:
            yield from [rows] if rows else []
            return
        limits = self.model()
        part: list[dict[str, Any]] = []
        chars = 0
        for row in rows:
            full = len(part) >= limits["max_items"] or chars + _size(row) > limits["max_chars"]
            if part and (full or 6 * (chars + _size(row)) > limits["max_bytes"]):  # a sign has up to 6 bytes in JSON
                yield part
                part, chars = [], 0
            part.append(row)
            chars += _size(row)
        if part:
            yield part

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        for left in range(self.retries, -1, -1):
            try:
                answer = self._http.request(method, path, json=body)
            except httpx.TimeoutException:
                raise ServiceError(None, f"{self.url}: no answer in time", "wait longer (timeout)") from None
            except (httpx.HTTPError, httpx.InvalidURL) as e:
                remedy = "start the service with `fedvpa serve RUN`, or check the address"
                raise ServiceError(None, f"{self.url}: no connection ({e})", remedy) from None
            except (ValueError, TypeError) as e:  # NaN, or half of a surrogate pair
                raise ServiceError(None, f"the request cannot be written as JSON ({e})", "check its values") from None
            if answer.is_success:
                return _json(answer) if answer.content else None
            if answer.status_code not in AGAIN or not left:
                raise _error(answer)
            self._sleep(_pause(answer))
        raise AssertionError("unreachable")


def _rows(rows: Rows, field: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """What the service knows of each row; cells that hold nothing (None, NaN) are left out."""
    found = [{k: _turns(row[k]) for k in columns if k in row} for row in rows_of(rows, field)]
    return [{k: v for k, v in row.items() if v is not None and v == v} for row in found]


def _turns(value: Any) -> Any:
    """A text or number as it is, messages as mappings."""
    value = plain(value)
    if isinstance(value, (list, tuple)):
        return [turn._asdict() if hasattr(turn, "_asdict") else turn for turn in value]
    return value


def _size(row: Mapping[str, Any]) -> int:
    """Characters of a row, with its prompt for each of its responses, and what JSON writes between them."""
    responses = [v for k, v in row.items() if k != "prompt"]
    prompt = row.get("prompt", "")
    before = len(prompt) if isinstance(prompt, str) else sum(len(str(turn.get("content", ""))) + 40 for turn in prompt)
    return sum(before + len(str(response)) for response in responses) + 80


def _reference(user: RemoteUserLike) -> dict[str, Any] | None:
    """The user as the service names it."""
    match user:
        case None:
            return None
        case User(id=str(name)):
            return {"id": name}
        case User():
            return {"latent": user.latent()}
        case str():
            return {"id": user}
        case Mapping():
            return {"blend": {str(k): w for k, w in weights_of(user).items()}}
    return {"prototype": next(iter(weights_of(user)))}


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        raise ServiceError(answer.status_code, "the answer is not JSON", _CHECK) from None


def _error(answer: httpx.Response) -> ServiceError:
    try:
        error = answer.json()["error"]
        remedy = error["remedy"] or ("correct it" if answer.status_code == 422 else None)
        return ServiceError(answer.status_code, error["message"], remedy, error["field"])
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
