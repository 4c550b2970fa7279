"""OpenRLHF's remote reward model: what its trainers send, and what they make of the answer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import requests

from fedvpa import Selector
from fedvpa.apps.server.errors import ApiError
from fedvpa.apps.server.openrlhf import split
from fedvpa.preferences.schema import Message
from fedvpa.rewards import EMPTY
from serving import Live, listening

HI, YES = Message("user", "Hi.\nYou?"), Message("assistant", "Yes.")
CHATML = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi.\nYou?<|im_end|>\n<|im_start|>assistant\n"
LLAMA = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi.\nYou?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
GEMMA = "<bos><start_of_turn>user\nHi.\nYou?<end_of_turn>\n<start_of_turn>model\n"
ZEPHYR = "<|user|>\nHi.\nYou?</s>\n<|assistant|>\n"
HH = "\n\nHuman: Hi.\nYou?\n\nAssistant:"


@pytest.mark.parametrize(
    ("prompt", "end", "dialogue"),
    [
        (CHATML, "<|im_end|>\n", (Message("system", "Be kind."), HI)),
        (CHATML, "<|im_end|><|endoftext|><|endoftext|>", (Message("system", "Be kind."), HI)),
        (LLAMA, "<|eot_id|>", (HI,)),
        (GEMMA, "<end_of_turn>\n<eos>", (HI,)),
        (ZEPHYR, "</s>", (HI,)),
        (HH, "", (HI,)),
    ],
)
@pytest.mark.parametrize("response", ["Fine, <b>thanks</b>.\n\nAnd you?", "x", ""])
def test_templates_are_taken_apart(prompt: str, end: str, dialogue: tuple[Message, ...], response: str) -> None:
    assert split(prompt + response + end, prompt, 0) == (dialogue, response)
    assert split(prompt + response + end, None, 0) == (dialogue, response)


def test_several_turns() -> None:
    prompt = CHATML + "Yes.<|im_end|>\n<|im_start|>user\nReally?<|im_end|>\n<|im_start|>assistant\n"
    turns = (Message("system", "Be kind."), HI, YES, Message("user", "Really?"))
    for given in (prompt, None):
        assert split(prompt + "Sure.<|im_end|>", given, 0) == (turns, "Sure.")


def test_a_policy_without_a_template_needs_prompts() -> None:
    assert split("<s> What is 2+2? It is 4.</s>", "What is 2+2?", 0) == ((Message("user", "What is 2+2?"),), "It is 4.")
    for given in (None, "", "something else"):
        with pytest.raises(ApiError) as e:
            split("What is 2+2? It is 4.", given, 3)
        assert e.value.problem.field == "query[3]"


def test_a_prompt_that_the_trainer_has_cut_on_its_left() -> None:
    """Then the query does not hold the prompt, and the template alone says where the response begins."""
    query = CHATML[CHATML.index("<|im_start|>user") :] + "Fine.<|im_end|>"
    assert split(query, CHATML, 0) == ((HI,), "Fine.")


def remote_rm_fn(url: str, queries: list[str], prompts: list[str] | None, labels: list[Any] | None) -> dict[str, Any]:
    """What OpenRLHF does: one POST, an error for anything but success."""
    data: dict[str, Any] = {"query": queries}
    if prompts is not None:
        data |= {"prompts": prompts, "labels": labels}
    answer = requests.post(url, json=data, headers={"Content-Type": "application/json"}, timeout=60)
    answer.raise_for_status()
    return dict(answer.json())


def test_a_trainer_gets_rewards(live: Live, finished: Path) -> None:
    selector = Selector.from_pretrained(finished)
    responses = ["Fine.", "Fine, thank you very much for asking me.", "", "Go away."]
    queries = [CHATML + r + "<|im_end|>" for r in responses]
    dialogue = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi.\nYou?"}]
    for address, user in (("", None), ("?prototype=1", selector.blend({1: 1.0}))):
        expected = selector.reward_function(user)([dialogue] * 4, responses)
        assert expected[2] == EMPTY
        url = f"{live.url}/get_reward{address}"
        recent = remote_rm_fn(url, queries, [CHATML] * 4, ["label", None, "", "x"])
        older = remote_rm_fn(url, queries, None, None)
        assert recent["rewards"] == pytest.approx(expected, abs=1e-5)
        assert older["rewards"] == recent["rewards"]
        assert recent["scores"] == pytest.approx(
            [1 / (1 + math.exp(-10 * math.atanh(r / 10))) if r > -10 else 0 for r in expected], abs=1e-6
        )
        assert all(len(values) == 4 for values in recent["extra_logs"].values())


def test_the_user_stands_in_the_address(live: Live) -> None:
    example = {"prompt": "Hi", "chosen": "A long answer to it.", "rejected": "No"}
    made = live.http.post("/v1/users", json={"examples": [example] * 3, "store": True}).json()
    body = {"texts": [{"prompt": "Hi", "response": "Fine."}], "user": {"id": made["id"]}}
    expected = [10 * math.tanh(r / 10) for r in live.http.post("/v1/score", json=body).json()["rewards"]]
    found = remote_rm_fn(f"{live.url}/get_reward?user={made['id']}", ["Hi Fine."], ["Hi"], [None])["rewards"]
    assert found == pytest.approx(expected, abs=1e-5)
    blended = remote_rm_fn(f"{live.url}/get_reward?blend=0:0.5,1:0.5", ["Hi Fine."], ["Hi"], [None])["rewards"]
    body["user"] = {"blend": {"0": 0.5, "1": 0.5}}
    assert blended == pytest.approx(live.http.post("/v1/score", json=body).json()["rewards"], abs=1e-5)
    live.http.delete(f"/v1/users/{made['id']}")
    with pytest.raises(requests.HTTPError, match="404"):
        remote_rm_fn(f"{live.url}/get_reward?user={made['id']}", ["Hi Fine."], ["Hi"], [None])


def test_the_token_stands_in_the_address_too(finished: Path) -> None:
    """The trainer sends no header of ours, but every HTTP library sends what stands before the host."""
    with listening(finished, token="s3cret-token") as live:
        url = live.url.replace("http://", "http://trainer:s3cret-token@") + "/get_reward"
        assert len(remote_rm_fn(url, ["Hi Fine."], ["Hi"], [None])["rewards"]) == 1
        with pytest.raises(requests.HTTPError, match="401"):
            remote_rm_fn(url.replace("s3cret", "wrong"), ["Hi Fine."], ["Hi"], [None])


def test_labels_name_each_rows_user(live: Live) -> None:
    """`?users=labels`: a stored user's id, a prototype's number or a blend; anything else is an error and no reward."""
    example = {"prompt": "Hi", "chosen": "A long answer to it.", "rejected": "No"}
    ada = live.http.post("/v1/users", json={"examples": [example] * 3, "store": True}).json()["id"]
    labels, query = [ada, "1", 0, "0:0.5,1:0.5", ada], ["Hi Fine."] * 4 + ["Hi"]
    url = f"{live.url}/get_reward"
    found = remote_rm_fn(f"{url}?users=labels", query, ["Hi"] * 5, labels)["rewards"]
    users = [f"user={ada}", "prototype=1", "prototype=0", "blend=0:0.5,1:0.5"]
    alone = [remote_rm_fn(f"{url}?{user}", ["Hi Fine."], ["Hi"], [None])["rewards"][0] for user in users]
    assert found == pytest.approx([*alone, EMPTY], abs=1e-5)
    assert len({round(r, 4) for r in alone}) == 4
    for wrong, field in (
        (["nobody", "1"], "labels[0]"),
        (["1"], "labels"),
        (None, "labels"),
        (["1", "7"], "labels[1]"),
    ):
        body = {"query": ["Hi Fine."] * 2, "prompts": ["Hi"] * 2, "labels": wrong}
        answer = live.http.post("/get_reward?users=labels", json=body)
        assert answer.status_code in (404, 422)
        assert answer.json()["error"]["field"] == field
    both = live.http.post("/get_reward?users=labels&prototype=1", json={"query": ["Hi Fine."], "prompts": ["Hi"]})
    assert both.json()["error"]["field"] == "users"
