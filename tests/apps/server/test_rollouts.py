"""A trainer that posts a whole rollout, a client with more than one request takes, and ties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from fedvpa import Selector
from fedvpa.client import Client, ServiceError, is_loopback
from fedvpa.ranking import ranking, tied
from serving import Live, listening


def rollout(n: int, words: int = 1) -> dict[str, Any]:
    return {"query": [f"Hi Fine, {i % 7}.{' ok' * words}" for i in range(n)], "prompts": ["Hi"] * n}


@pytest.mark.parametrize("path", ["/get_reward", "/get_reward/"])
def test_a_whole_rollout_in_one_request(live: Live, path: str) -> None:
    body = rollout(600, 500)
    assert sum(map(len, body["query"])) > 400_000
    answer = httpx.post(f"{live.url}{path}", json=body, timeout=300)
    assert answer.status_code == 200
    found = answer.json()["rewards"]
    assert len(found) == 600
    few = httpx.post(f"{live.url}/get_reward", json=rollout(7, 500), timeout=60).json()["rewards"]
    assert found[:7] == pytest.approx(few, abs=1e-4)
    assert found[7:14] == pytest.approx(few, abs=1e-4)


def test_the_limits_are_stated_and_held(finished: Path) -> None:
    with listening(finished, max_rollout=5, max_rollout_bytes=3 * 2**20) as small:
        said = httpx.get(f"{small.url}/v1/model").json()
        assert (said["max_rollout"], said["max_rollout_bytes"]) == (5, 3 * 2**20)
        answer = httpx.post(f"{small.url}/get_reward", json=rollout(6))
        assert (answer.status_code, answer.json()["error"]["message"]) == (422, "has 6 items, 5 are allowed")
        large = {"query": ["Hi Fine." + "x" * 3 * 2**20], "prompts": ["Hi"]}
        assert httpx.post(f"{small.url}/get_reward", json=large).status_code == 413
        large = {"prompt": "Hi", "responses": ["x" * int(2.5 * 2**20)]}
        assert httpx.post(f"{small.url}/v1/rank", json=large).status_code == 413


def test_a_client_splits_by_the_limits_that_the_service_states(live: Live, finished: Path) -> None:
    client, selector = Client(live.url, timeout=300), Selector.from_pretrained(finished)
    responses = [f"Fine, {i % 5}." for i in range(700)]
    found = client.rewards("Hi", responses)
    assert found == pytest.approx(selector.rewards(["Hi"] * 5, responses[:5]).tolist() * 140, abs=1e-4)
    p = client.score([{"prompt": "Hi" * 4000, "a": f"{i % 3}", "b": "no"} for i in range(100)])
    assert len(p) == 100
    assert p[:3] * 33 + p[:1] == pytest.approx(p, abs=1e-5)
    reward = client.reward_function()
    assert len(reward(["Hi"] * 300, responses[:300])) == 300


def test_equal_responses_tie_and_keep_their_order(live: Live, finished: Path) -> None:
    texts = ["Fine.", "No.", "Fine.", "No way, my friend.", "Fine."]
    found = live.http.post("/v1/rank", json={"prompt": "Hi", "responses": texts}).json()["ranking"]
    local = [text for text, _ in Selector.from_pretrained(finished).rank("Hi", texts)]
    for ranked in (local, [texts[r["index"]] for r in found]):
        at = [i for i, text in enumerate(ranked) if text == "Fine."]
        assert at == list(range(at[0], at[0] + 3))
    same = [r for r in found if texts[r["index"]] == "Fine."]
    assert [r["index"] for r in same] == [0, 2, 4]
    assert len({r["score"] for r in same}) == 1
    assert [i for i, _ in ranking([0.5, 0.5 + 1e-12, 0.5 - 1e-12])] == [0, 1, 2]
    assert tied(torch.tensor([0.1, 0.2, 0.3]), ["a", "b", "a"]).tolist() == pytest.approx([0.1, 0.2, 0.1])


def test_a_proxy_has_no_say_about_this_machine(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert Client(live.url).model()["method"]
    for url in ("http://localhost:1", "http://127.0.0.3", "http://[::1]:8400", "http://x.localhost"):
        assert is_loopback(url)
    for url in ("http://example.org", "http://10.0.0.1:8400", "http://[fe80::1]", "nonsense"):
        assert not is_loopback(url)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense://x"])
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ServiceError, match=r"the proxy in ALL_PROXY cannot be used .*; unset ALL_PROXY") as e:
        Client("http://selector.example.org:8400").model()
    assert len(str(e.value).splitlines()) == 1
