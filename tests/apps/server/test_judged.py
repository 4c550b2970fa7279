"""The service with a model that takes judgements: every kind, users that are updated, questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedvpa import Selector, User
from fedvpa.client import Client, ServiceError
from serving import Live, listening
from test_judgements import LONG, PROMPT, SHORT, answers

PAIR = {"prompt": PROMPT, "a": LONG, "b": SHORT}
POOL = [{"prompt": PROMPT, "a": "No 51.", "b": "No 52."}, PAIR, {"prompt": PROMPT, "text": LONG}, {"text": SHORT}]
GIVEN = [{**a, "rating": float(a["rating"])} if "rating" in a else a for a in answers()[:6]]


@pytest.fixture(scope="module")
def judged(judged_run: Path) -> Iterator[Live]:
    with listening(judged_run) as live:
        yield live


@pytest.fixture(scope="module")
def selector(judged_run: Path) -> Selector:
    return Selector.from_pretrained(judged_run)


def ask(live: Live, path: str, body: Any) -> Any:
    answer = live.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_kind_in_one_request(judged: Live, selector: Selector) -> None:
    found = User.model_validate(ask(judged, "/v1/users", {"examples": GIVEN})["user"])
    expected = selector.infer_user(GIVEN)
    assert found.pairs == expected.pairs == 6
    assert found.mean == pytest.approx(expected.mean, abs=1e-3)
    assert found.posterior is not None
    (p,) = ask(judged, "/v1/score", {"pairs": [PAIR], "user": {"latent": found.model_dump(exclude_none=True)}})["p_a"]
    assert p == pytest.approx(selector.prefer(PROMPT, LONG, SHORT, expected), abs=1e-4)


def test_a_stored_user_is_updated_where_it_is(judged: Live, selector: Selector) -> None:
    first = ask(judged, "/v1/users", {"examples": GIVEN[:3], "store": True})
    later = ask(judged, "/v1/users", {"examples": GIVEN[3:], "user": {"id": first["id"]}})
    assert later["id"] == first["id"]
    assert later["user"]["pairs"] == 6
    assert judged.http.get(f"/v1/users/{first['id']}").json()["user"] == later["user"]
    inline = ask(judged, "/v1/users", {"examples": GIVEN[3:], "user": {"latent": first["user"]}})
    assert inline["id"] is None
    assert inline["user"]["mean"] == pytest.approx(later["user"]["mean"], abs=1e-4)
    expected = selector.update_user(selector.infer_user(GIVEN[:3]), GIVEN[3:])
    assert later["user"]["mean"] == pytest.approx(expected.mean, abs=1e-3)


def test_users_of_one_batch_keep_apart(judged: Live, selector: Selector) -> None:
    users = [selector.infer_user(GIVEN), selector.blend({0: 1.0}), None]
    from fedvpa.apps.server.work import Compare
    from fedvpa.preferences.schema import Pair, as_prompt

    pair = Pair(as_prompt(PROMPT), LONG, SHORT)
    found = judged.service.scorer([Compare((pair,), selector.known(u)) for u in users])
    for (p,), user in zip(found, users, strict=True):
        assert p == pytest.approx(selector.prefer(PROMPT, LONG, SHORT, user), abs=1e-5)


def test_questions(judged: Live, selector: Selector) -> None:
    found = ask(judged, "/v1/ask", {"pool": POOL, "n": 3})
    expected = selector.ask(None, POOL, 3)
    assert [q["index"] for q in found["questions"]] == [a.row for a in expected]
    assert [q["bits"] for q in found["questions"]] == pytest.approx([a.bits for a in expected], abs=1e-4)
    known = ask(judged, "/v1/ask", {"pool": POOL, "user": {"prototype": 0}})
    assert len(known["questions"]) == 1


def test_the_client(judged: Live, selector: Selector) -> None:
    with Client(judged.url) as client:
        ada = client.infer_user([{**a, "note": "not sent"} for a in GIVEN[:3]], store=True)
        later = client.update_user(ada, GIVEN[3:])
        assert (later.id, later.pairs) == (ada.id, 6)
        assert client.prefer(PROMPT, LONG, SHORT, later) > client.prefer(PROMPT, LONG, SHORT)
        (best,) = client.ask(POOL[:2])
        assert best.question == PAIR
        assert best.bits > 0
        reward = client.reward_function(later)([PROMPT, PROMPT], [LONG, SHORT])
        assert reward[0] > reward[1]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/users", {"examples": [{"prompt": "x", "text": "y", "vote": 2}]}, "examples[0].vote"),
        ("/v1/users", {"examples": [{"prompt": "x", "label": True}]}, "examples[0].text"),
        ("/v1/users", {"examples": [{"prompt": "x", "text": " ", "rating": 2}]}, "examples[0].text"),
        ("/v1/users", {"examples": [{"prompt": "x", "text": "y", "label": True, "vote": 1}]}, "examples[0]"),
        ("/v1/users", {"examples": [{"prompt": "x", "a": "y", "b": "z"}]}, "examples[0].preferred"),
        ("/v1/users", {"examples": [{"prompt": "x", "a": "y", "b": "y", "preferred": "a"}]}, "examples[0].b"),
        ("/v1/users", {"examples": GIVEN[:1], "inference": "mixture", "user": {"prototype": 0}}, None),
        ("/v1/users", {"examples": GIVEN[:1], "user": {"prototype": 7}}, "user.prototype"),
        ("/v1/ask", {"pool": []}, "pool"),
        ("/v1/ask", {"pool": [{"prompt": "x"}]}, "pool[0].text"),
        ("/v1/ask", {"pool": [PAIR], "n": 0}, "n"),
        ("/v1/ask", {"pool": [{"prompt": "x", "a": "y", "b": "y"}]}, "pool[0].b"),
    ],
)
def test_mistakes_name_the_field(judged: Live, path: str, body: Any, field: str | None) -> None:
    answer = judged.http.post(path, json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"roots": [[1e-6 if c == r else 0.0 for r in range(5) for c in range(r + 1)]]}, "user.latent.posterior.roots"),
        ({"roots": [[0.0] * 15]}, "user.latent"),
        ({"means": [[0.0]]}, "user.latent.posterior.means[0]"),
        ({"version": 2}, "user.latent.posterior.version"),
    ],
)
def test_a_posterior_that_nobody_could_have(judged: Live, change: dict[str, Any], field: str) -> None:
    root = [1.0 if c == r else 0.0 for r in range(5) for c in range(r + 1)]
    posterior = {"weights": [1.0], "means": [[0.0] * 5], "roots": [root]} | change
    body = {"pairs": [PAIR], "user": {"latent": {"mean": [0.0] * 5, "posterior": posterior}}}
    answer = judged.http.post("/v1/score", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == field


def test_a_mean_alone_is_a_point(judged: Live) -> None:
    (p,) = ask(judged, "/v1/score", {"pairs": [PAIR], "user": {"latent": {"mean": [0.0] * 5}}})["p_a"]
    assert 0 < p < 1
    for extreme in (-1000.0, 1000.0):
        latent = {"mean": [0.0] * 5, "log_var": [extreme] * 5}
        answer = judged.http.post("/v1/score", json={"pairs": [PAIR], "user": {"latent": latent}})
        assert answer.json()["error"]["field"] == "user.latent.log_var"


def test_an_extreme_posterior_is_updated_or_refused(judged: Live) -> None:
    """Entries of the root that differ by ten orders leave a precision that rounding makes singular."""
    root = [1.0 if c == r else 1e6 * (r - c) for r in range(5) for c in range(r + 1)]
    for diagonal in (1.0, 1e6):
        given = [diagonal if c == r else v for (r, c), v in zip(_places(5), root, strict=True)]
        latent = {"mean": [0.0] * 5, "posterior": {"weights": [1.0], "means": [[1000.0] * 5], "roots": [given]}}
        answer = judged.http.post("/v1/users", json={"examples": GIVEN, "user": {"latent": latent}})
        assert answer.status_code in (200, 422), answer.text


def _places(dim: int) -> list[tuple[int, int]]:
    return [(r, c) for r in range(dim) for c in range(r + 1)]


def test_a_user_of_pairs_cannot_be_updated(live: Live) -> None:
    with Client(live.url) as client, pytest.raises(ServiceError, match="a user of fedvpa-gp cannot be updated"):
        client.update_user(client.infer_user(GIVEN[:1]), GIVEN[:1])
