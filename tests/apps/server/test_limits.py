"""Bounds on what may be asked: bytes, items, characters, time, and who may ask."""

from __future__ import annotations

import asyncio
import base64
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import Cli
from fedvpa import UserError
from fedvpa.apps.listening import is_local
from fedvpa.apps.server.settings import Settings
from serving import Live, listening

TOKEN = "correct horse battery"
PAIR = {"prompt": "Hi", "a": "Hello there", "b": "No"}


@pytest.fixture(scope="module")
def strict(finished: Path) -> Iterator[Live]:
    limits = {
        "max_bytes": 4000,
        "max_items": 3,
        "max_rollout": 3,
        "max_responses": 2,
        "max_chars": 500,
        "max_header_bytes": 2000,
    }
    with listening(finished, **limits, users=1, token=TOKEN) as live:
        yield live


@pytest.fixture(scope="module")
def hasty(finished: Path) -> Iterator[Live]:
    """Waits 0.4 seconds for a head or a body, where the others wait for 10."""
    with listening(finished, body_seconds=0.4, token=TOKEN) as live:
        yield live


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"field", "message", "remedy"}
    return dict(body["error"])


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/users", {"examples": [{"prompt": "x", "chosen": "a", "rejected": "b"}] * 4}, "examples"),
        ("/v1/score", {"pairs": [PAIR] * 4}, "pairs"),
        ("/v1/score", {"texts": [{"prompt": "x", "response": "y"}] * 4}, "texts"),
        ("/v1/score", {"prompt": "x", "responses": ["y"] * 4}, "responses"),
        ("/v1/rank", {"prompt": "x", "responses": ["a", "b", "c"]}, "responses"),
        ("/get_reward", {"query": ["x y"] * 4, "prompts": ["x"] * 4}, "query"),
        ("/v1/users", {"examples": [{"prompt": "x" * 300, "chosen": "a", "rejected": "b"}]}, "examples"),
        ("/v1/score", {"pairs": [{**PAIR, "a": "x" * 500}]}, "pairs"),
        ("/v1/rank", {"prompt": "x" * 250, "responses": ["a", "b"]}, "responses"),
    ],
)
def test_too_many_and_too_long(strict: Live, path: str, body: Any, field: str) -> None:
    found = error(strict.http.post(path, json=body), 422)
    assert found["field"] == field
    assert "allowed" in found["message"]


def test_a_body_that_is_too_large(strict: Live) -> None:
    assert "4,000 bytes" in error(strict.http.post("/v1/score", content=b"x" * 4001), 413)["message"]

    def pieces() -> Iterator[bytes]:  # chunked: its size is not announced
        for _ in range(50):
            yield b"x" * 1000

    assert "4,000 bytes" in error(strict.http.post("/v1/score", content=pieces()), 413)["message"]


def test_as_many_users_as_may_be(strict: Live) -> None:
    body = {"examples": [{"prompt": "x", "chosen": "a", "rejected": "b"}], "store": True}
    made = strict.http.post("/v1/users", json=body)
    assert made.status_code == 200
    assert "stored already" in error(strict.http.post("/v1/users", json=body), 409)["message"]
    assert strict.http.delete(f"/v1/users/{made.json()['id']}").status_code == 204
    again = strict.http.post("/v1/users", json=body)
    assert again.status_code == 200
    strict.http.delete(f"/v1/users/{again.json()['id']}")


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Token {TOKEN}",
        TOKEN,
        "Basic %%%",
        basic("no"),
    ],
)
def test_without_the_token_nothing_is_told(strict: Live, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    with httpx.Client(base_url=strict.url, headers=headers) as http:
        for path in ("/v1/model", "/metrics", "/docs", "/openapi.json", "/nothing", "/v1/users/x"):
            answer = http.get(path)
            assert "token" in error(answer, 401)["message"]
            assert "www-authenticate" in answer.headers
        assert error(http.post("/v1/score", json={"pairs": [PAIR]}), 401)
        assert http.get("/healthz").status_code == 200
        assert http.get("/readyz").status_code == 200


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN)])
def test_with_the_token(strict: Live, header: str) -> None:
    assert httpx.get(f"{strict.url}/v1/model", headers={"authorization": header}).status_code == 200


def test_two_tokens_are_none(strict: Live) -> None:
    headers = [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer wrong")]
    assert httpx.get(f"{strict.url}/v1/model", headers=headers).status_code == 401


# On the wire ---------------------------------------------------------------------------------------------------------


def talk(live: Live, *parts: bytes, pause: float = 0.0) -> bytes:
    """Sends parts, and reads until the service closes, for which it has ten seconds; what came."""
    host, port = live.url.removeprefix("http://").split(":")
    got = b""
    with socket.create_connection((host, int(port)), timeout=10) as s:
        for part in parts:
            try:
                s.sendall(part)
            except OSError:
                break
            time.sleep(pause)
        try:
            while piece := s.recv(65536):
                got += piece
        except ConnectionResetError:
            pass
    return got


HEAD = f"POST /v1/score HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n"


def test_a_slow_body_is_cut(hasty: Live) -> None:
    got = talk(hasty, HEAD.encode() + b"content-length: 100\r\n\r\n", b'{"pairs', b'": ', pause=0.15)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b'"the body did not arrive within 0.4 seconds"' in got


def test_a_slow_head_is_cut(hasty: Live) -> None:
    got = talk(hasty, b"GET /healthz HTTP/1.1\r\n", b"a: b\r\n", b"c: d\r\n", pause=0.15)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b'"error"' in got


def test_a_connection_that_says_nothing_is_closed(hasty: Live) -> None:
    got = talk(hasty)
    assert got == b""


def test_a_head_that_is_too_large(strict: Live) -> None:
    got = talk(strict, b"GET /healthz HTTP/1.1\r\n", *[b"x: " + b"y" * 500 + b"\r\n"] * 10)
    assert got.startswith(b"HTTP/1.1 431 ")
    assert b'"error"' in got


def test_what_is_no_http(strict: Live) -> None:
    got = talk(strict, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 400 ")
    assert b"this is not an HTTP request" in got


def test_a_connection_serves_several_requests(strict: Live) -> None:
    """The clock for a head stops between them, and starts anew with each."""
    request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n"
    got = talk(strict, request, request[:20], request[20:], request + last, pause=0.1)
    assert got.count(b"HTTP/1.1 200 ") == 4


# A busy service ------------------------------------------------------------------------------------------------------


def test_more_than_the_queue_holds_is_429_and_nothing_else(finished: Path) -> None:
    with listening(finished, queue=2, batch_requests=1, batch_wait=0.0) as live:
        scorer = live.service.batcher._evaluate

        def slowly(works: Any, wanted: Any) -> Any:
            time.sleep(0.05)
            return scorer(works, wanted)

        live.service.batcher._evaluate = slowly

        async def crowd() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=live.url, timeout=60) as http:
                return await asyncio.gather(*(http.post("/v1/score", json={"pairs": [PAIR]}) for _ in range(30)))

        answers = asyncio.run(crowd())
        statuses = [a.status_code for a in answers]
        assert set(statuses) == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert "waiting" in error(answer, 429)["message"]
                assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert live.http.post("/v1/score", json={"pairs": [PAIR]}).status_code == 200


def test_what_takes_too_long_is_504(finished: Path) -> None:
    with listening(finished, timeout=0.1) as live:
        live.service.batcher._evaluate = lambda works, wanted: time.sleep(0.4) or [[0.5]] * len(works)
        assert "0.1 seconds" in error(live.http.post("/v1/score", json={"pairs": [PAIR]}), 504)["message"]


def test_a_fault_of_ours_is_clean_json_and_in_the_log(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    with listening(finished) as live:
        live.service.batcher._evaluate = lambda works, wanted: [1 / 0]
        assert "fault" in error(live.http.post("/v1/score", json={"pairs": [PAIR]}), 500)["message"]
        assert "ZeroDivisionError" in caplog.text
        assert live.http.get("/healthz").status_code == 200


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_this_machine_needs_no_token(host: str) -> None:
    assert is_local(host)
    assert Settings(host=host).token is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "example.org", "", "127.0.0.1.example.org"])
def test_other_machines_need_a_token(host: str) -> None:
    with pytest.raises(UserError, match=r"--host: .*there is no token; give --token"):
        Settings(host=host)
    assert Settings(host=host, token=TOKEN).host == host


@pytest.mark.parametrize("token", ["", "short", "mit Umlaut ä", "two\nlines here"])
def test_a_token_that_is_none(token: str) -> None:
    with pytest.raises(UserError, match="--token: must be 8 printable ASCII characters"):
        Settings(token=token)


def test_the_command_refuses_before_it_listens(finished: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("serve", finished, "--host", "0.0.0.0")
    assert (done.code, done.out) == (2, "")
    assert "there is no token" in done.err
    assert cli("serve", tmp_path).err.endswith(
        "no trained selector here; give the folder of a finished run of `fedvpa train`\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = cli("serve", finished, "--port", taken.getsockname()[1])
    assert done.code == 2
    assert "cannot listen at 127.0.0.1" in done.err
