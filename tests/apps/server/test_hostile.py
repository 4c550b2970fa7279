"""Requests that nobody sends in good faith: whatever comes, the answer is a success or a clean refusal."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import Live

PATHS = (
    "/v1/users",
    "/v1/ask",
    "/v1/score",
    "/v1/rank",
    "/get_reward",
    "/v1/users/x",
    "/v1/model",
    "/metrics",
    "/nothing",
)
NAMES = (
    *(
        "examples",
        "prompt",
        "chosen",
        "rejected",
        "pairs",
        "a",
        "b",
        "texts",
        "response",
        "responses",
        "role",
        "content",
    ),
    *("user", "id", "prototype", "blend", "0", "1", "latent", "mean", "log_var", "particles", "weights", "model_hash"),
    *("label", "vote", "rating", "text", "completion", "preferred", "margin", "posterior", "roots", "pool", "n"),
    *("query", "prompts", "labels", "inference", "store", "content"),
)
texts = st.text(st.characters(), max_size=40) | st.sampled_from(["", " ", "\x00", "\ud800", "\u202e", "x" * 3000])
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**30), 1e308, -0.0, float("nan"), float("inf")])
leaves = st.none() | st.booleans() | numbers | texts
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(NAMES) | texts, inner, max_size=6),
    max_leaves=25,
)
message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "bot"]), "content": texts})
prompt = texts | st.lists(message, max_size=3) | leaves
user = (
    st.none()
    | trees
    | st.fixed_dictionaries(
        {},
        optional={
            "prototype": st.integers(-2, 3) | leaves,
            "blend": st.dictionaries(st.sampled_from(["0", "1", "9", "x"]), numbers, max_size=3),
            "latent": st.fixed_dictionaries(
                {"mean": st.lists(numbers, min_size=3, max_size=5)},
                optional={
                    "particles": st.lists(st.lists(numbers, min_size=4, max_size=4), max_size=3),
                    "weights": st.lists(numbers, max_size=3),
                    "log_var": st.lists(numbers, min_size=4, max_size=4),
                },
            ),
        },
    )
)
near = st.fixed_dictionaries(
    {},
    optional={
        "examples": st.lists(st.fixed_dictionaries({"prompt": prompt, "chosen": texts, "rejected": texts}), max_size=3),
        "pool": st.lists(st.fixed_dictionaries({"prompt": prompt}, optional={"text": texts, "a": texts, "b": texts})),
        "n": st.integers(-1, 3) | leaves,
        "pairs": st.lists(st.fixed_dictionaries({"prompt": prompt, "a": texts, "b": texts}), max_size=3),
        "texts": st.lists(st.fixed_dictionaries({"prompt": prompt, "response": texts}), max_size=3),
        "prompt": prompt,
        "responses": st.lists(texts, max_size=4) | trees,
        "query": st.lists(texts, max_size=3),
        "prompts": st.lists(texts, max_size=3),
        "user": user,
        "store": st.booleans(),
        "inference": st.sampled_from(["amortised", "mixture", "refined", "x"]) | leaves,
    },
)


def written(tree: Any) -> bytes:
    return json.dumps(tree).encode()  # NaN, infinities and halves of surrogate pairs included


def spoilt(args: tuple[bytes, int, bytes]) -> bytes:
    body, at, noise = args
    at %= len(body) + 1
    return body[:at] + noise + body[at + 1 :]


bodies = (
    st.binary(max_size=200)
    | trees.map(written)
    | near.map(written)
    | st.tuples(near.map(written), st.integers(0, 10_000), st.binary(max_size=3)).map(spoilt)
    | st.builds(lambda n, c: c * n, st.integers(1, 50_000), st.sampled_from([b"[", b'{"a":', b'"', b"9", b"\\"]))
)
header = st.sampled_from(["application/json", "application/json; charset=utf-16", "text/html", "multipart/form-data"])
queries = st.dictionaries(
    st.sampled_from(["user", "prototype", "blend", "x"]), texts.map(lambda t: t[:200]), max_size=2
)


def assert_clean(live: Live, method: str, path: str, body: bytes, kind: str, query: dict[str, str]) -> None:
    params = {k: v.encode("utf-8", "replace") for k, v in query.items()}
    encoded = httpx.QueryParams({k: v.decode() for k, v in params.items()})
    answer = live.http.request(method, path, content=body, headers={"content-type": kind}, params=encoded)
    assert answer.status_code < 500, (answer.status_code, answer.text)
    if answer.status_code >= 400:
        assert set(answer.json()) == {"error"}
        assert answer.json()["error"]["message"]
    elif path.startswith(("/v1/score", "/v1/rank", "/get_reward")):
        json.loads(answer.content, parse_constant=lambda name: pytest.fail(f"{name} in an answer"))


def attack(live: Live, examples: int) -> None:
    statuses: dict[int, int] = {}

    @given(st.sampled_from(["POST"] * 6 + ["GET", "DELETE", "PUT"]), st.sampled_from(PATHS), bodies, header, queries)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def one(method: str, path: str, body: bytes, kind: str, query: dict[str, str]) -> None:
        assert_clean(live, method, path, body, kind, query)
        statuses[0] = statuses.get(0, 0) + 1

    one()
    assert statuses[0] >= examples
    assert live.http.get("/readyz").status_code == 200
    pair = {"prompt": "Still", "a": "there?", "b": "gone?"}
    assert live.http.post("/v1/score", json={"pairs": [pair]}).status_code == 200


def test_a_few_hundred(live: Live) -> None:
    attack(live, 300)


@pytest.mark.slow
def test_ten_thousand(live: Live) -> None:
    attack(live, 10_000)
