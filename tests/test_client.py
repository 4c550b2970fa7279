"""The Python client: typed results, errors in one line, and patience with a busy service."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fedvpa import Selector, User
from fedvpa.client import Client, ServiceError
from fedvpa.rewards import EMPTY
from serving import Live, listening
from test_rewards import two_steps
from test_selector_api import EXAMPLES, PROMPT, A, B


@pytest.fixture(scope="module")
def live(finished: Path) -> Iterator[Live]:
    with listening(finished, token="a token of ours") as live:
        yield live


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    with Client(live.url, "a token of ours") as client:
        yield client


@pytest.fixture(scope="module")
def selector(finished: Path) -> Selector:
    return Selector.from_pretrained(finished)


def test_an_inferred_user_scores_and_ranks(client: Client, selector: Selector) -> None:
    ada, known = client.infer_user(EXAMPLES), selector.infer_user(EXAMPLES)
    assert isinstance(ada, User)
    assert ada.id is None
    assert ada.mean == pytest.approx(known.mean, abs=1e-5)
    assert ada.pairs == 6
    assert client.prefer(PROMPT, A, B, ada) == pytest.approx(selector.prefer(PROMPT, A, B, known), abs=1e-5)
    ranked = client.rank(PROMPT, [A, B, "Go away."], ada)
    assert [r.response for r in ranked] == [text for text, _ in selector.rank(PROMPT, [A, B, "Go away."], known)]
    assert [[A, B, "Go away."][r.index] for r in ranked] == [r.response for r in ranked]


def test_a_stored_user(client: Client) -> None:
    ada = client.infer_user(EXAMPLES, "refined", store=True)
    assert ada.id is not None
    assert client.stored_user(ada.id) == ada
    inline = ada.model_copy(update={"id": None})
    p = client.prefer(PROMPT, A, B, ada)
    assert client.prefer(PROMPT, A, B, ada.id) == p
    assert client.prefer(PROMPT, A, B, inline) == pytest.approx(p, abs=1e-6)
    client.forget_user(ada.id)
    with pytest.raises(ServiceError, match=r"user\.id: no such user is stored") as e:
        client.prefer(PROMPT, A, B, ada)
    assert e.value.status == 404
    for ask in (client.stored_user, client.forget_user):
        with pytest.raises(ServiceError) as e:
            ask("../model")  # an id is an id, and no way to another address
        assert e.value.status == 404


def test_prototypes_and_blends(client: Client, selector: Selector) -> None:
    assert client.prefer(PROMPT, A, B, 1) == pytest.approx(
        selector.prefer(PROMPT, A, B, selector.blend({1: 1.0})), abs=1e-5
    )
    half = selector.blend({0: 0.5, 1: 0.5})
    assert client.score([{"prompt": PROMPT, "a": A, "b": B, "id": 7}], {0: 0.5, 1: 0.5}) == pytest.approx(
        [selector.prefer(PROMPT, A, B, half)], abs=1e-5
    )
    with pytest.raises(ServiceError, match=r"user\.prototype: no prototype 7; choose from 0 to 1"):
        client.prefer(PROMPT, A, B, 7)
    assert client.model()["prototypes"] == 2


def test_rewards_in_trls_signature(client: Client, selector: Selector) -> None:
    ada = client.infer_user(EXAMPLES)
    messages = [[{"role": "user", "content": PROMPT}]] * 3
    answers = [[{"role": "assistant", "content": text}] for text in (A, B, " ")]
    found = client.reward_function(ada)(prompts=messages, completions=answers, trainer_state=None)
    expected = selector.reward_function(selector.infer_user(EXAMPLES))(messages, answers)
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[2] == EMPTY


@pytest.mark.slow
def test_trls_trainer_learns_from_it(client: Client, selector: Selector, tmp_path: Path) -> None:
    """Two steps of GRPO with rewards over HTTP: the trainer logs what the selector itself would have given."""
    given: list[float] = []
    ask = client.reward_function(client.infer_user(EXAMPLES))
    local = selector.reward_function(selector.infer_user(EXAMPLES))

    def selector_over_http(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        found = ask(prompts, completions, **columns)
        assert found == pytest.approx(local(prompts, completions), abs=1e-4)
        given.append(sum(found) / len(found))
        return found

    trainer, moved = two_steps("GRPO", selector_over_http, tmp_path)
    name = "rewards/selector_over_http/mean"
    logged = [entry[name] for entry in trainer.state.log_history if name in entry]
    assert len(given) == 2
    assert logged == pytest.approx(given, abs=1e-4)
    assert moved


def test_what_is_wrong_is_one_line(client: Client, live: Live) -> None:
    with pytest.raises(ServiceError) as e:
        client.infer_user([*EXAMPLES, {"prompt": "x", "chosen": "y"}])
    assert str(e.value) == "examples[6].rejected: field required; fill it in"
    assert (e.value.status, e.value.field) == (422, "examples[6].rejected")
    with pytest.raises(ServiceError, match="the token is missing or wrong") as e:
        Client(live.url).model()
    assert e.value.status == 401
    with pytest.raises(ServiceError, match="no connection") as e:
        Client("http://127.0.0.1:9").model()
    assert e.value.status is None
    with pytest.raises(ServiceError, match="cannot be written as JSON"):
        client.prefer(PROMPT, A, B, {0: float("nan")})
    with pytest.raises(ServiceError, match="cannot be used"):
        Client("http://host:port")


class Busy(BaseHTTPRequestHandler):
    """Answers from a list, then nothing but 429."""

    answers: list[tuple[int, dict[str, str], bytes]]

    def do_GET(self) -> None:
        status, headers, body = self.answers.pop(0) if self.answers else (429, {"Retry-After": "2"}, b"{}")
        self.send_response(status)
        for k, v in {"content-length": str(len(body)), **headers}.items():
            self.send_header(k, v)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture
def busy() -> Iterator[str]:
    Busy.answers = []
    server = HTTPServer(("127.0.0.1", 0), Busy)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_busy_service_is_asked_again(busy: str) -> None:
    slept: list[float] = []
    Busy.answers = [
        (429, {"Retry-After": "3"}, b""),
        (503, {"Retry-After": "nonsense"}, b""),
        (429, {"Retry-After": "900"}, b""),
        (200, {}, json.dumps({"method": "fedvpa-gp"}).encode()),
    ]
    assert Client(busy, sleep=slept.append).model() == {"method": "fedvpa-gp"}
    assert slept == [3.0, 1.0, 30.0]


def test_patience_ends(busy: str) -> None:
    slept: list[float] = []
    with pytest.raises(ServiceError, match="HTTP 429") as e:
        Client(busy, retries=2, sleep=slept.append).model()
    assert e.value.status == 429
    assert slept == [2.0, 2.0]


def test_something_else_at_the_address(busy: str) -> None:
    Busy.answers = [(200, {}, b"<html>"), (500, {}, b"<html>")]
    for match in ("not JSON", "HTTP 500"):
        with pytest.raises(ServiceError, match=match):
            Client(busy).model()


def test_it_needs_no_torch() -> None:
    code = "import sys, fedvpa.client; sys.exit('torch' in sys.modules or 'fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
