"""An LLM as a judge, against a faked endpoint: good answers, nonsense, errors, silence, nobody there."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fedvpa import UserError
from fedvpa.evaluation.endpoint_judge import EndpointJudge
from fedvpa.evaluation.judges import Verdict, win_rate
from fedvpa.preferences.schema import as_prompt

PROMPT = as_prompt("How are you?")


def completion(text: Any) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


class Endpoint(ThreadingHTTPServer):
    """Answers every request by `reply` (request's body -> status, bytes) and remembers it."""

    daemon_threads = True

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], tuple[int, bytes]] = lambda body: completion("A")
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        endpoint = self.server
        assert isinstance(endpoint, Endpoint)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        endpoint.bodies.append(body)
        endpoint.headers.append(dict(self.headers))
        endpoint.paths.append(self.path)
        status, answer = endpoint.reply(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the judge hung up
            super().handle()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def judge_at(url: str, **options: Any) -> EndpointJudge:
    return EndpointJudge(url, "m", "longer answers", **{"pause": 0.0, "retries": 2} | options)


def shown(body: dict[str, Any]) -> dict[str, Any]:
    return json.loads(body["messages"][1]["content"])


def longer(body: dict[str, Any]) -> tuple[int, bytes]:
    a, b = (len(shown(body)[side]) for side in "AB")
    return completion("A" if a > b else "B" if b > a else "tie")


def test_verdicts_come_in_the_order_of_the_comparisons(endpoint: Endpoint) -> None:
    endpoint.reply = longer
    prompts = [as_prompt(f"question {i}") for i in range(12)]
    first, second = ["x" * (i % 3) + "y" for i in range(12)], ["zz"] * 12
    expected = [Verdict.of(len(a), len(b)) for a, b in zip(first, second, strict=True)]
    assert judge_at(endpoint.url).judge(prompts, first, second) == expected
    assert len(endpoint.bodies) == 12


def test_the_request(endpoint: Endpoint) -> None:
    judge_at(endpoint.url + "/", api_key="secret").judge([PROMPT], ["Fine."], ['"B" is right.'])
    (body,), (headers,) = endpoint.bodies, endpoint.headers
    assert endpoint.paths == ["/v1/chat/completions"]
    assert (body["model"], body["temperature"]) == ("m", 0)
    assert "longer answers" in body["messages"][0]["content"]
    conversation = [{"role": "user", "content": "How are you?"}]
    assert shown(body) == {"conversation": conversation, "A": "Fine.", "B": '"B" is right.'}
    assert headers["Authorization"] == "Bearer secret"
    judge_at(endpoint.url).judge([PROMPT], ["a"], ["b"])
    assert "Authorization" not in endpoint.headers[1]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A", Verdict.FIRST),
        (" b.\n", Verdict.SECOND),
        ("**Tie**", Verdict.TIE),
        ("Answer: B", Verdict.SECOND),
        ("A is shorter.\nSo B wins, I think.\n\n**Verdict: B**", Verdict.SECOND),
    ],
)
def test_replies_that_are_verdicts(endpoint: Endpoint, text: str, verdict: Verdict) -> None:
    endpoint.reply = lambda body: completion(text)
    assert judge_at(endpoint.url).judge([PROMPT], ["a"], ["b"]) == [verdict]


@pytest.mark.parametrize("text", ["", "maybe", "A or B", "C", "A good answer.", "AB", None, 7, ["A"]])
def test_nonsense_is_an_error(endpoint: Endpoint, text: Any) -> None:
    endpoint.reply = lambda body: completion(text)
    with pytest.raises(UserError, match=r"instead of A, B or tie, 3 times; use a stronger model"):
        judge_at(endpoint.url).judge([PROMPT], ["a"], ["b"])
    assert len(endpoint.bodies) == 3


@pytest.mark.parametrize("answer", [b"<html>hello</html>", b"{}", b'{"choices": []}', b"[1]", b"\xff\xfe"])
def test_no_chat_completion_is_an_error(endpoint: Endpoint, answer: bytes) -> None:
    endpoint.reply = lambda body: (200, answer)
    with pytest.raises(UserError, match=r"v1/chat/completions: judge: the judge's answer is no chat completion"):
        judge_at(endpoint.url).judge([PROMPT], ["a"], ["b"])


def test_a_passing_failure_is_survived(endpoint: Endpoint) -> None:
    replies = iter([(500, b"oops"), (429, b"slow down"), completion("hm"), completion("B")])
    endpoint.reply = lambda body: next(replies)
    assert judge_at(endpoint.url, retries=3).judge([PROMPT], ["a"], ["b"]) == [Verdict.SECOND]
    assert len(endpoint.bodies) == 4


def test_a_lasting_failure_is_an_error(endpoint: Endpoint) -> None:
    endpoint.reply = lambda body: (500, b"out of\nmemory")
    with pytest.raises(UserError, match=r"the judge refuses with HTTP 500 \(out of memory\), 3 times"):
        judge_at(endpoint.url).judge([PROMPT], ["a"], ["b"])
    assert len(endpoint.bodies) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_not_repeated_and_the_key_not_shown(endpoint: Endpoint, status: int) -> None:
    endpoint.reply = lambda body: (status, b'{"error": "no such model"}')
    with pytest.raises(UserError, match=f"HTTP {status} .*no such model") as caught:
        judge_at(endpoint.url, api_key="secret").judge([PROMPT], ["a"], ["b"])
    assert len(endpoint.bodies) == 1
    assert "secret" not in str(caught.value)


def test_one_failure_among_many_ends_it(endpoint: Endpoint) -> None:
    endpoint.reply = lambda body: completion("A") if shown(body)["A"] != "x5" else (404, b"")
    texts = [f"x{i}" for i in range(8)]
    with pytest.raises(UserError, match="HTTP 404"):
        judge_at(endpoint.url).judge([PROMPT] * 8, texts, ["y"] * 8)


def test_silence_is_an_error(endpoint: Endpoint) -> None:
    def sleep(body: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(0.5)
        return completion("A")

    endpoint.reply = sleep
    with pytest.raises(UserError, match=r"no answer within 0.05 s, 2 times; raise the timeout"):
        judge_at(endpoint.url, timeout=0.05, retries=1).judge([PROMPT], ["a"], ["b"])


def test_nobody_there_is_an_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=r"cannot be reached .*3 times; start it, or correct the address"):
        judge_at(f"http://127.0.0.1:{port}/v1").judge([PROMPT], ["a"], ["b"])
    with pytest.raises(UserError, match="base_url: 'localhost:8000' is no address"):
        judge_at("localhost:8000")


def test_a_connection_cut_off_is_an_error(endpoint: Endpoint) -> None:
    def cut(body: dict[str, Any]) -> tuple[int, bytes]:
        raise ConnectionResetError

    endpoint.reply = cut
    with pytest.raises(UserError, match="cannot be reached"):
        judge_at(endpoint.url).judge([PROMPT], ["a"], ["b"])


def test_equal_answers_are_a_tie_without_a_question(endpoint: Endpoint) -> None:
    assert judge_at(endpoint.url).judge([PROMPT], ["same"], ["same"]) == [Verdict.TIE]
    assert not endpoint.bodies


def test_a_win_rate_by_an_endpoint(endpoint: Endpoint) -> None:
    endpoint.reply = longer
    prompts = [as_prompt(f"question {i}") for i in range(4)]
    found = win_rate(judge_at(endpoint.url), prompts, ["xxx", "xxx", "x", "xx"], ["xx"] * 4)
    assert (found.rate, found.wins, found.ties, found.losses) == (0.625, 2, 1, 1)
    assert found.judge == "LLM m (longer answers)"
    endpoint.reply = lambda body: completion("A")  # whatever comes first
    found = win_rate(judge_at(endpoint.url), prompts, ["xxx", "xxx", "x", "x"], ["xx"] * 4)
    assert (found.rate, found.inconsistent) == (0.5, 1.0)
