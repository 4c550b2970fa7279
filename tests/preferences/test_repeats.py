"""Where the prompt of a row stands: every layout of public preference sets gives the same prompt and responses."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from conftest import Cli
from fedvpa.config import load_config
from fedvpa.errors import UserError
from fedvpa.preferences.jsonl import one_response, preference_of, prompt_of
from fedvpa.preferences.reading import read_people
from fedvpa.preferences.repeats import HH, IMPLICIT, REPEATED
from fedvpa.preferences.schema import Message

Q, YES, NO = "How do I boil an egg?", "Eight minutes.", "Well, eggs are odd."
EARLIER = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]
ASK, PLAIN = {"role": "user", "content": Q}, (Message("user", Q),)
BRIEF = {"role": "system", "content": "Be brief."}
WITH_SYSTEM = (Message("system", "Be brief."), *PLAIN)
LONG = (Message("user", "Hi."), Message("assistant", "Hello!"), *PLAIN)
HUMAN = f"\n\nHuman: {Q}\n\nAssistant:"


def answers(*before: Any) -> dict[str, Any]:
    """Both responses as messages, behind some turns."""
    return {k: [*before, {"role": "assistant", "content": v}] for k, v in (("chosen", YES), ("rejected", NO))}


def texts(before: str = "", after: str = "") -> dict[str, Any]:
    return {"chosen": f"{before}{YES}{after}", "rejected": f"{before}{NO}{after}"}


LAYOUTS: dict[str, tuple[dict[str, Any], tuple[Message, ...], set[str]]] = {
    "TRL standard": ({"prompt": Q, **texts()}, PLAIN, set()),
    "TRL conversational": ({"prompt": [ASK], **answers()}, PLAIN, set()),
    "TRL implicit prompt, texts": (texts(f"{Q} "), PLAIN, {IMPLICIT}),
    "TRL implicit prompt, messages": (answers(ASK), PLAIN, {IMPLICIT}),
    "UltraFeedback-binarised": ({"prompt": Q, **answers(ASK)}, PLAIN, {REPEATED}),
    "the prompt as messages in both": ({"prompt": [ASK], **answers(ASK)}, PLAIN, {REPEATED}),
    "white space apart, messages": ({"prompt": f" {Q}\n", **answers(ASK)}, PLAIN, {REPEATED}),
    "white space apart, texts": ({"prompt": "How do I  boil\nan egg?", **texts(f" {Q}\n\n")}, None, {REPEATED}),  # type: ignore[dict-item]
    "a system turn in the responses": ({"prompt": Q, **answers(BRIEF, ASK)}, WITH_SYSTEM, {REPEATED}),
    "a system turn in the prompt": ({"prompt": [BRIEF, ASK], **answers(ASK)}, WITH_SYSTEM, {REPEATED}),
    "a system turn in both": ({"prompt": [BRIEF, ASK], **answers(BRIEF, ASK)}, WITH_SYSTEM, {REPEATED}),
    "only a system turn in the responses": ({"prompt": Q, **answers(BRIEF)}, WITH_SYSTEM, set()),
    "the last question as prompt": ({"prompt": Q, **answers(*EARLIER, ASK)}, LONG, {REPEATED}),
    "the first question as prompt": ({"prompt": "Hi.", **answers(*EARLIER, ASK)}, LONG, {REPEATED}),
    "the dialogue goes on in the responses": ({"prompt": EARLIER[:1], **answers(EARLIER[1], ASK)}, LONG, set()),
    "prompt as a text prefix": ({"prompt": Q, **texts(f"{Q} ")}, PLAIN, {REPEATED}),
    "prompt as a text prefix, no space": ({"prompt": Q, **texts(Q)}, PLAIN, {REPEATED}),
    "messages as prompt, its text as a prefix": ({"prompt": [BRIEF, ASK], **texts(f"{Q}\n")}, WITH_SYSTEM, {REPEATED}),
    "HH": (texts(f"{HUMAN} "), PLAIN, {HH, IMPLICIT}),
    "HH without its first newlines": (texts(f"{HUMAN.lstrip()} "), PLAIN, {HH, IMPLICIT}),
    "HH in the prompt (Dahoas)": ({"prompt": HUMAN, **texts(" ")}, PLAIN, set()),
    "HH in the prompt, stripped": ({"prompt": HUMAN.strip(), **texts(" ")}, PLAIN, set()),
    "HH in the prompt, no mark behind it": ({"prompt": f"\n\nHuman: {Q}", **texts()}, PLAIN, set()),
    "HH in all": ({"prompt": HUMAN, **texts(f"{HUMAN} ")}, PLAIN, {HH, REPEATED}),
    "HH in the responses": ({"prompt": Q, **texts(f"{HUMAN} ")}, PLAIN, {HH, REPEATED}),
    "ShareGPT (LLaMA-Factory)": (
        {
            "prompt": [{"from": "human", "value": Q}],
            "chosen": {"from": "gpt", "value": YES},
            "rejected": {"from": "gpt", "value": NO},
        },
        PLAIN,
        set(),
    ),
    "messages as JSON text": (
        {"prompt": json.dumps([ASK]), **{k: json.dumps(v) for k, v in answers(ASK).items()}},
        PLAIN,
        {REPEATED},
    ),
    "RewardBench": ({"prompt": Q, **texts(), "chosen_model": "x", "rejected_model": "y", "subset": "z"}, PLAIN, set()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_prompt_once(layout: str) -> None:
    row, prompt, found = LAYOUTS[layout]
    counts: Counter[str] = Counter()
    given = preference_of(row, Path("rows.jsonl"), 1, counts)
    assert given[1:] == (YES, NO)
    if prompt is not None:
        assert given[0] == prompt
    assert {what for what, n in counts.items() if n} == found


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Other?", **answers(ASK)}, "has turns before the response that are not the prompt's"),
        ({"prompt": "Other?", **texts(f"{HUMAN} ")}, "has turns before the response that are not the prompt's"),
        (
            {"chosen": f"{HUMAN} {YES}", "rejected": f"\n\nHuman: {Q[:-1]} now?\n\nAssistant: {NO}"},
            "differs from chosen before the last assistant turn",
        ),
        (
            {"chosen": answers(ASK)["chosen"], "rejected": answers(BRIEF, ASK)["rejected"]},
            "differs from chosen before the last assistant turn",
        ),
        ({"prompt": Q, "chosen": YES, "rejected": answers()["rejected"]}, "is a list, but chosen is text"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as e:
        preference_of(row, Path("rows.jsonl"), 7)
    assert problem in str(e.value)
    assert str(e.value).startswith("rows.jsonl:7: ")
    assert e.value.remedy


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [("Hello", "Hello, world.", "Hello-there"), ("U.S", "U.S.A", "U.S.B"), (Q, f"{Q} {YES}", NO)],
)
def test_a_response_that_only_begins_like_its_prompt_is_left_alone(prompt: str, chosen: str, rejected: str) -> None:
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    assert preference_of(row, Path("rows.jsonl"), 1)[1:] == (chosen, rejected)


def test_a_single_response_has_its_prompt_once_too() -> None:
    for row in ({"prompt": Q, "text": f"{HUMAN} {YES}"}, {"prompt": Q, "text": answers(ASK)["chosen"]}):
        assert one_response(row, "text", Path("x"), 1) == (PLAIN, YES)
    assert prompt_of({"prompt": HUMAN}, Path("x"), 1) == PLAIN


def test_what_was_found_is_said_once(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    lines = [json.loads(line) for line in Path(str(load_config(experiment).data.path)).read_text().splitlines()]
    rows = [{**r, **{k: f"{r['prompt']} {r[k]}" for k in ("chosen", "rejected")}} for r in lines]
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    people = read_people(load_config(experiment, [f"data.path={tmp_path / 'twice.jsonl'}"]).data)
    assert set(people.items) == set(read_people(load_config(experiment).data).items)
    options = [f"data.path={tmp_path / 'twice.jsonl'}", "federation.rounds=1", "method.name=fedbt"]
    done = cli("train", experiment, *options, "--out", tmp_path / "r")
    assert done.code == 0
    assert done.err.count(f"{tmp_path / 'twice.jsonl'}: {len(rows)} {REPEATED}") == 1
