"""What nobody would look at is refused, with the nearest name: parameters, fields, environment variables."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from conftest import Cli
from serving import Live

REWARD = {"query": ["Hi Fine."], "prompts": ["Hi"]}
JUDGED = {"examples": [{"prompt": "Hi", "chosen": "Fine.", "rejected": "No."}]}


def refused(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, f"{error['field']}: {error['message']}", error["remedy"]


@pytest.mark.parametrize(
    ("address", "problem", "remedy"),
    [
        ("protoype=1", "protoype: unknown parameter", "did you mean prototype?"),
        ("prototype=1&prototype=0", "prototype: is given twice", "give it once"),
        ("Prototype=1", "Prototype: unknown parameter", "did you mean prototype?"),
        ("prototype%20=1", "prototype : unknown parameter", "did you mean prototype?"),
        ("usr=ada", "usr: unknown parameter", "did you mean user?"),
        ("prototype=1&x=2", "x: unknown parameter", "known are user, prototype, blend, standardised, users"),
        ("x", "x: unknown parameter", "known are user, prototype, blend, standardised, users"),
    ],
)
def test_a_misspelt_or_doubled_parameter_is_no_average_user(
    live: Live, address: str, problem: str, remedy: str
) -> None:
    assert refused(httpx.post(f"{live.url}/get_reward?{address}", json=REWARD)) == (422, problem, remedy)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/score"),
        ("POST", "/v1/rank"),
        ("POST", "/v1/users"),
        ("POST", "/v1/ask"),
        ("GET", "/v1/users/ada"),
        ("DELETE", "/v1/users/ada"),
        ("GET", "/v1/model"),
        ("GET", "/healthz"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
    ],
)
def test_every_address_refuses_parameters_that_it_does_not_have(live: Live, method: str, path: str) -> None:
    answer = httpx.request(method, f"{live.url}{path}?prototype=1", json={} if method == "POST" else None)
    assert refused(answer) == (422, "prototype: unknown parameter", "remove it")


@pytest.mark.parametrize(
    ("path", "body", "problem", "remedy"),
    [
        ("/get_reward", {**REWARD, "label": [1]}, "label: unknown field", "did you mean labels?"),
        ("/v1/users", {**JUDGED, "stor": True}, "stor: unknown field", "did you mean store?"),
        ("/v1/rank", {"prompt": "Hi", "responses": ["a"], "usr": {"prototype": 0}}, "usr: unknown field", "did you"),
        (
            "/v1/rank",
            {"prompt": "Hi", "responses": ["a"], "user": {"protoype": 0}},
            "user.protoype: unknown field",
            "did you mean prototype?",
        ),
        ("/v1/rank", {"prompt": "Hi", "responses": ["a"], "zzzzz": 1}, "zzzzz: unknown field", "remove it"),
    ],
)
def test_an_unknown_field_of_a_body_names_the_nearest(
    live: Live, path: str, body: dict[str, Any], problem: str, remedy: str
) -> None:
    status, found, hint = refused(httpx.post(f"{live.url}{path}", json=body))
    assert (status, found) == (422, problem)
    assert hint is not None
    assert hint.startswith(remedy)


def test_an_unknown_variable_of_the_environment_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVPA_TOKENN", "secret-enough")
    done = cli("config", "--keys")
    assert done.code == 2
    assert done.err == "error: FEDVPA_TOKENN: unknown environment variable; did you mean FEDVPA_TOKEN?\n"
    monkeypatch.delenv("FEDVPA_TOKENN")
    monkeypatch.setenv("FEDVPA_QWQWQWQWQW", "1")
    assert "unset it; known are FEDVPA_CACHE" in cli("config", "--keys").err
    monkeypatch.delenv("FEDVPA_QWQWQWQWQW")
    monkeypatch.setenv("FEDVPA_CACHE", "/tmp/x")
    assert cli("config", "--keys").code == 0
