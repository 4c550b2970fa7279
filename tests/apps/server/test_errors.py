"""What is wrong with a request is said in JSON, with the field's name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving import Live

OK = {"prompt": "x", "chosen": "a", "rejected": "b"}
PAIR = {"prompt": "x", "a": "a", "b": "b"}
HUGE = "1" + "0" * 5000


def with_user(user: Any) -> dict[str, Any]:
    return {"pairs": [PAIR], "user": user}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/users", {}, "examples"),
        ("/v1/users", {"examples": []}, "examples"),
        ("/v1/users", {"examples": "x"}, "examples"),
        ("/v1/users", {"examples": [OK, 3]}, "examples[1]"),
        ("/v1/users", {"examples": [{**OK, "chosen": ""}]}, "examples[0].chosen"),
        ("/v1/users", {"examples": [{**OK, "chosen": " \n"}]}, "examples[0].chosen"),
        ("/v1/users", {"examples": [{**OK, "rejected": "a"}]}, "examples[0].rejected"),
        ("/v1/users", {"examples": [OK, {**OK, "more": 1}]}, "examples[1].more"),
        ("/v1/users", {"examples": [{**OK, "prompt": []}]}, "examples[0].prompt"),
        ("/v1/users", {"examples": [{**OK, "prompt": None}]}, "examples[0].prompt"),
        (
            "/v1/users",
            {"examples": [{**OK, "prompt": [{"role": "bot", "content": "x"}]}]},
            "examples[0].prompt[0].role",
        ),
        ("/v1/users", {"examples": [{**OK, "prompt": [{"role": "user"}]}]}, "examples[0].prompt[0].content"),
        ("/v1/users", {"examples": [OK], "inference": "magic"}, "inference"),
        ("/v1/users", {"examples": [OK], "store": "perhaps"}, "store"),
        ("/v1/users", {"examples": [OK], "stor": True}, "stor"),
        ("/v1/score", {"pairs": [{"prompt": "x", "a": "a"}]}, "pairs[0].b"),
        ("/v1/score", with_user({"prototype": 2}), "user.prototype"),
        ("/v1/score", with_user({"prototype": -1}), "user.prototype"),
        ("/v1/score", with_user({"prototype": 1.5}), "user.prototype"),
        ("/v1/score", with_user({"blend": {"0": 0.5, "1": 0.6}}), "user.blend"),
        ("/v1/score", with_user({"blend": {"7": 1}}), "user.blend"),
        ("/v1/score", with_user({"blend": {}}), "user.blend"),
        ("/v1/score", with_user({}), "user"),
        ("/v1/score", with_user({"prototype": 0, "id": "x"}), "user"),
        ("/v1/score", with_user("ada"), "user"),
        ("/v1/score", with_user({"latent": {"mean": [0, 0, 0]}}), "user.latent.mean"),
        ("/v1/score", with_user({"latent": {"mean": []}}), "user.latent.mean"),
        ("/v1/score", with_user({"latent": {"mean": [0, 0, 0, 1e9]}}), "user.latent.mean[3]"),
        ("/v1/score", with_user({"latent": {"mean": [0] * 4, "log_var": [0]}}), "user.latent.log_var"),
        (
            "/v1/score",
            with_user({"latent": {"mean": [0] * 4, "particles": [[0] * 4, [0]]}}),
            "user.latent.particles[1]",
        ),
        ("/v1/score", with_user({"latent": {"mean": [0] * 4, "particles": [[0] * 4]}}), "user.latent"),
        (
            "/v1/score",
            with_user({"latent": {"mean": [0] * 4, "particles": [[0] * 4], "weights": [0.5]}}),
            "user.latent",
        ),
        ("/v1/score", with_user({"latent": {"mean": [0] * 4, "model_hash": "0" * 64}}), "user.latent.model_hash"),
        ("/v1/rank", {"prompt": "x", "responses": []}, "responses"),
        ("/v1/rank", {"prompt": "x", "responses": ["a", ""]}, "responses[1]"),
        ("/v1/rank", {"prompt": "x", "responses": {"a": 1}}, "responses"),
        ("/get_reward", {"query": []}, "query"),
        ("/get_reward", {"query": [3]}, "query[0]"),
        ("/get_reward", {"query": ["a", "b"], "prompts": ["a"]}, "prompts"),
        ("/get_reward", {"query": ["nothing to split at"]}, "query[0]"),
        ("/get_reward?prototype=2", {"query": ["x y"], "prompts": ["x"]}, "prototype"),
        ("/get_reward?prototype=x", {"query": ["x y"], "prompts": ["x"]}, "prototype"),
        ("/get_reward?blend=0:1,0:2", {"query": ["x y"], "prompts": ["x"]}, "blend"),
        ("/get_reward?blend=0:nan", {"query": ["x y"], "prompts": ["x"]}, "blend"),
        ("/get_reward?blend=0:0.5&prototype=1", {"query": ["x y"], "prompts": ["x"]}, "user"),
    ],
)
def test_the_field_is_named(live: Live, path: str, body: Any, field: str) -> None:
    answer = live.http.post(path, json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == field
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [{}, {"pairs": [PAIR], "texts": []}, {"prompt": "x"}, {"responses": ["x"]}, {"pairs": [PAIR], "prompt": "x"}],
)
def test_one_of_the_ways_to_ask(live: Live, body: Any) -> None:
    answer = live.http.post("/v1/score", json=body)
    assert answer.status_code == 422
    assert "error" in answer.json()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"\xff\xfe{}", 400),
        (b'{"pairs": "\xc3\x28"}', 400),
        (b"[" * 200_000, 400),
        (b'{"a":' * 200_000, 400),
        (b"[]", 422),
        (b"null", 422),
        (b"NaN", 422),
        (b'{"pairs": NaN}', 422),
        (f'{{"pairs": {HUGE}}}'.encode(), 400),
        (f'{{"pairs": 1e{HUGE}}}'.encode(), 422),
        (b'{"pairs": [{"prompt": "\\ud800", "a": "x", "b": "y"}]}', 400),
        (b'{"pairs": [{"prompt": "\\u0000", "a": "\\u0000x", "b": "y"}]}', 200),
        (b'{"pairs": [{"prompt": "x", "a": "x", "b": "y"}], "user": {"latent": {"mean": [NaN, 0, 0, 0]}}}', 422),
        (b'{"pairs": [{"prompt": "x", "a": "x", "b": "y"}], "user": {"latent": {"mean": [1e999, 0, 0, 0]}}}', 422),
        (b'{"pairs": [{"prompt": "x", "a": "x", "b": "y"}], "user": {"blend": {"0": Infinity}}}', 422),
    ],
)
def test_bodies_that_are_none(live: Live, body: bytes, status: int) -> None:
    answer = live.http.post("/v1/score", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    if status != 200:
        assert set(answer.json()["error"]) == {"field", "message", "remedy"}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "nonsense", ""])
def test_another_content_type(live: Live, kind: str) -> None:
    answer = live.http.post("/v1/score", content=json.dumps({"pairs": [PAIR]}), headers={"content-type": kind})
    assert answer.status_code == 422
    assert "content-type: application/json" in answer.json()["error"]["remedy"]


def test_addresses_and_methods(live: Live) -> None:
    for path in ("/", "/v1", "/v1/score/", "/v1/users/", "/%2e%2e/etc/passwd", "/v1/users/a/b", "/\u00e4"):
        answer = live.http.get(path)
        assert answer.status_code == 404, path
        assert "address" in answer.json()["error"]["message"]
    for method, path in (("GET", "/v1/score"), ("PUT", "/v1/rank"), ("POST", "/healthz"), ("PATCH", "/v1/users/x")):
        answer = live.http.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"]
        assert "method" in answer.json()["error"]["message"]
    assert live.http.get("/v1/users/" + "x" * 65).status_code == 422


def test_an_error_does_not_repeat_the_text(live: Live) -> None:
    body = {"examples": [{"prompt": "My secret", "chosen": 5, "rejected": "also secret"}]}
    assert "secret" not in live.http.post("/v1/users", json=body).text
