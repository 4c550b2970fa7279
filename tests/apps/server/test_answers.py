"""What the service answers is what the selector says."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conftest import preference_lines
from fedvpa import Selector, User
from fedvpa.apps.cli import main
from serving import Live, listening

EXAMPLES = [
    {k: v for k, v in json.loads(line).items() if k in ("prompt", "chosen", "rejected")}
    for line in preference_lines(1, 6)
]
PROMPT, A, B = "How are you?", "Fine.", "Fine, thank you very much for asking me."


@pytest.fixture(scope="module")
def selector(finished: Path) -> Selector:
    return Selector.from_pretrained(finished)


def ask(live: Live, path: str, body: Any) -> Any:
    answer = live.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("inference", [None, "amortised", "mixture", "refined"])
def test_a_user_is_the_selectors(live: Live, selector: Selector, inference: str | None) -> None:
    answer = ask(live, "/v1/users", {"examples": EXAMPLES, "inference": inference})
    expected = selector.infer_user(EXAMPLES, inference)
    assert answer["id"] is None
    found = User.model_validate(answer["user"])
    assert found.model_copy(update=dict.fromkeys(("mean", "log_var", "particles", "weights"))) == expected.model_copy(
        update=dict.fromkeys(("mean", "log_var", "particles", "weights"))
    )
    assert found.mean == pytest.approx(expected.mean, abs=1e-5)
    assert found.log_var == pytest.approx(expected.log_var, abs=1e-5)


def test_every_way_to_name_a_user(live: Live, selector: Selector) -> None:
    stored = ask(live, "/v1/users", {"examples": EXAMPLES, "store": True})
    user = selector.infer_user(EXAMPLES)
    expected = {
        json.dumps({"id": stored["id"]}): user,
        json.dumps({"latent": stored["user"]}): user,
        json.dumps({"prototype": 1}): selector.blend({1: 1.0}),
        json.dumps({"blend": {"0": 0.25, "1": 0.75}}): selector.blend({0: 0.25, 1: 0.75}),
        json.dumps({"latent": {"mean": [0.5, -1, 0, 2]}}): user.model_copy(
            update={"mean": [0.5, -1.0, 0.0, 2.0], "particles": None, "weights": None}
        ),
        "null": None,
    }
    seen = set()
    for named, known in expected.items():
        body = {"pairs": [{"prompt": PROMPT, "a": A, "b": B}], "user": json.loads(named)}
        (p,) = ask(live, "/v1/score", body)["p_a"]
        assert p == pytest.approx(selector.prefer(PROMPT, A, B, known), abs=1e-5)
        seen.add(round(p, 5))
    assert len(seen) == 5  # the stored one and the inline one are the same


def test_rewards_of_one_prompt_and_of_many(live: Live, selector: Selector) -> None:
    dialogue = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": PROMPT}]
    one = ask(live, "/v1/score", {"prompt": dialogue, "responses": [A, B], "user": {"prototype": 0}})
    texts = [{"prompt": dialogue, "response": A}, {"prompt": "Else?", "response": B}]
    many = ask(live, "/v1/score", {"texts": texts, "user": {"prototype": 0}})
    user = selector.blend({0: 1.0})
    assert one["rewards"] == pytest.approx(selector.rewards(dialogue, [A, B], user).tolist(), abs=1e-5)
    assert many["rewards"] == pytest.approx(selector.rewards([dialogue, "Else?"], [A, B], user).tolist(), abs=1e-5)
    assert one["p_a"] is None
    assert one["model_hash"] == selector.info.model_hash


def test_a_ranking_is_the_selectors(live: Live, selector: Selector) -> None:
    responses = [A, B, "Go away.", "And you?"]
    user = ask(live, "/v1/users", {"examples": EXAMPLES})["user"]
    found = ask(live, "/v1/rank", {"prompt": PROMPT, "responses": responses, "user": {"latent": user}})["ranking"]
    expected = selector.rank(PROMPT, responses, selector.infer_user(EXAMPLES))
    assert [responses[r["index"]] for r in found] == [text for text, _ in expected]
    assert [r["score"] for r in found] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert ask(live, "/v1/rank", {"prompt": PROMPT, "responses": [A]})["ranking"] == [{"index": 0, "score": 0.5}]


def test_many_at_once_get_what_each_would_get_alone(live: Live, selector: Selector) -> None:
    """Requests of all kinds and for several users are merged, and none gets another's answer."""
    user = selector.infer_user(EXAMPLES[:2], "mixture")
    users = [None, {"prototype": 0}, {"prototype": 1}, {"latent": json.loads(user.model_dump_json(exclude_none=True))}]
    known = [None, selector.blend({0: 1.0}), selector.blend({1: 1.0}), user]
    asked, expected = [], []
    for i in range(40):
        who, a, b = i % 4, f"Answer {i}.", f"A longer answer, number {i}, with care."
        pairs = [{"prompt": f"Question {i % 5}?", "a": a, "b": b}] * (1 + i % 3)
        asked.append({"pairs": pairs, "user": users[who]})
        expected.append([selector.prefer(f"Question {i % 5}?", a, b, known[who])] * len(pairs))
    before = live.service.metrics.registry.get_sample_value("fedvpa_batch_requests_count") or 0
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda body: ask(live, "/v1/score", body)["p_a"], asked))
    for got, wanted in zip(found, expected, strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)
    batches = (live.service.metrics.registry.get_sample_value("fedvpa_batch_requests_count") or 0) - before
    assert batches < 40


def test_a_stored_user_comes_back_and_goes(live: Live) -> None:
    made = ask(live, "/v1/users", {"examples": EXAMPLES, "store": True})
    address = f"/v1/users/{made['id']}"
    assert live.http.get(address).json() == made
    assert live.http.delete(address).status_code == 204
    for answer in (live.http.get(address), live.http.delete(address)):
        assert answer.status_code == 404
        assert answer.json()["error"]["field"] == "id"
    body = {"pairs": [{"prompt": PROMPT, "a": A, "b": B}], "user": {"id": made["id"]}}
    refused = live.http.post("/v1/score", json=body)
    assert refused.status_code == 404
    assert refused.json()["error"]["field"] == "user.id"


def test_nothing_is_stored_unless_asked(finished: Path, experiment: Path) -> None:
    """Neither a user nor, on the disk, a feature of a text that only the service has seen."""
    import yaml

    cache = Path(yaml.safe_load(experiment.read_text())["output"]["cache"])

    def on_disk() -> dict[str, int]:
        return {str(p): p.stat().st_size for p in cache.rglob("*.sqlite*")}

    before = on_disk()
    with listening(finished) as live:
        ask(live, "/v1/users", {"examples": EXAMPLES})
        ask(live, "/v1/score", {"pairs": [{"prompt": "Secret?", "a": "Yes, a secret.", "b": "No."}]})
        assert len(live.service.users.stored) == 0
    assert on_disk() == before


def test_a_selector_without_a_latent(experiment: Path, tmp_path: Path) -> None:
    assert main(["train", str(experiment), "method.name=fedbt", "--out", str(tmp_path / "bt")]) == 0
    selector = Selector.from_pretrained(tmp_path / "bt")
    with listening(tmp_path / "bt") as live:
        user = ask(live, "/v1/users", {"examples": EXAMPLES})["user"]
        assert user["mean"] == []
        for who in (None, {"latent": user}):
            body = {"pairs": [{"prompt": PROMPT, "a": A, "b": B}], "user": who}
            assert ask(live, "/v1/score", body)["p_a"] == pytest.approx([selector.prefer(PROMPT, A, B)], abs=1e-5)
        refused = live.http.post("/v1/score", json={**body, "user": {"prototype": 0}})
        assert refused.status_code == 422
        assert refused.json()["error"]["field"] == "user.prototype"
        assert live.http.get("/v1/model").json()["prototypes"] == 0


def test_choice_logits_compare_but_have_no_reward(experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "choice"
    assert main(["train", str(experiment), "backbone.choice_logits=true", "--out", str(folder)]) == 0
    selector = Selector.from_pretrained(folder)
    with listening(folder) as live:
        body = {"pairs": [{"prompt": PROMPT, "a": A, "b": B}], "user": {"prototype": 0}}
        expected = selector.prefer(PROMPT, A, B, selector.blend({0: 1.0}))
        assert ask(live, "/v1/score", body)["p_a"] == pytest.approx([expected], abs=1e-5)
        for path, body in (
            ("/v1/score", {"prompt": PROMPT, "responses": [A]}),
            ("/get_reward", {"query": ["x"], "prompts": ["x"]}),
        ):
            refused = live.http.post(path, json=body)
            assert refused.status_code == 422
            assert "has no reward" in refused.json()["error"]["message"]


def test_health_metrics_and_pages(live: Live) -> None:
    assert live.http.get("/healthz").json() == {"status": "ok"}
    assert live.http.get("/readyz").json() == {"status": "ok"}
    model = live.http.get("/v1/model").json()
    assert (model["latent_dim"], model["prototypes"], model["backbone"]) == (4, 2, "llama")
    ask(live, "/v1/score", {"pairs": [{"prompt": "Never in a label", "a": A, "b": B}]})
    metrics = live.http.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert 'fedvpa_requests_total{method="POST",path="/v1/score",status="200"}' in metrics.text
    assert "fedvpa_queue_requests" in metrics.text
    assert "Never in a label" not in metrics.text
    page = live.http.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in live.http.get("/openapi.json").json()["paths"]:
        assert path in page.text
    assert not any(mark in page.text for mark in ("<script", "http://", "https://", "@import", "url("))
