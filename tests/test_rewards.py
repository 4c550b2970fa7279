"""Rewards for others' trainers: what a reward means, TRL's signature, and a few steps in TRL's own trainers."""

from __future__ import annotations

import math
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvpa import Selector, UserError
from fedvpa.apps.cli import main
from fedvpa.config import load_config
from fedvpa.latents import latent_of
from fedvpa.preferences.schema import as_prompt
from fedvpa.preferences.sources import load_preferences
from fedvpa.rewards import RewardFunction, bounded, probabilities
from fedvpa.variational.inference import Particles
from test_selector_api import EXAMPLES
from tiny_model import TEMPLATE, save_llama

PROMPT = as_prompt("How are you?")
TEXTS = ["Fine.", "Fine, thank you very much for asking me.", "Go away.", "And you?"]


@pytest.fixture(scope="module")
def selector(finished: Path) -> Selector:
    return Selector.from_pretrained(finished)


def logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


@pytest.mark.parametrize("inference", ["amortised", "refined"])
def test_a_difference_of_rewards_is_the_users_log_odds(selector: Selector, inference: str) -> None:
    user = selector.infer_user(EXAMPLES, inference)
    found = selector.rewards([PROMPT] * 4, TEXTS, user)
    assert found.shape == (4,)
    for i in range(4):
        for j in range(4):
            if i != j:
                expected = logit(selector.prefer("How are you?", TEXTS[i], TEXTS[j], user))
                assert float(found[i] - found[j]) == pytest.approx(expected, abs=1e-4)
    assert float(found.std()) > 1e-3


def test_several_latents_are_averaged_in_log_odds(selector: Selector) -> None:
    user = selector.infer_user(EXAMPLES[:2], "mixture")
    latent = latent_of(user, selector.dtype)
    assert isinstance(latent, Particles)
    assert 0.01 < float(latent.log_weights.exp().max()) < 0.999  # otherwise this is the test above
    expected = 0.0
    for z, w in zip(user.particles or [], user.weights or [], strict=True):
        one = user.model_copy(update={"mean": z, "particles": None, "weights": None})
        expected += w * logit(selector.prefer("How are you?", TEXTS[0], TEXTS[1], one))
    found = selector.rewards([PROMPT] * 2, TEXTS[:2], user)
    assert float(found[0] - found[1]) == pytest.approx(expected, abs=1e-4)


def test_a_reward_depends_on_its_own_response_only(selector: Selector) -> None:
    other = as_prompt("Question 3 of many?")
    together = selector.rewards([PROMPT, other, PROMPT], TEXTS[:3])
    alone = [float(selector.rewards([p], [t])[0]) for p, t in zip([PROMPT, other, PROMPT], TEXTS, strict=False)]
    assert together.tolist() == pytest.approx(alone, abs=1e-4)


def test_opposite_users_want_the_opposite(selector: Selector) -> None:
    """The latent's part of the reward changes its sign with the latent."""
    user = selector.infer_user(EXAMPLES, "amortised")
    bare = user.model_copy(update={"particles": None, "weights": None})
    turned = bare.model_copy(update={"mean": [-m for m in bare.mean]})
    nobody = bare.model_copy(update={"mean": [0.0] * len(bare.mean)})
    prompts = [PROMPT] * 4
    common = selector.rewards(prompts, TEXTS, nobody)
    one, two = (selector.rewards(prompts, TEXTS, u) - common for u in (bare, turned))
    assert one.tolist() == pytest.approx((-two).tolist(), abs=1e-4)
    assert float(one.abs().max()) > 1e-3


def test_the_ranking_is_that_of_rank(selector: Selector) -> None:
    user = selector.infer_user(EXAMPLES, "amortised")
    best = selector.rewards([PROMPT] * 4, TEXTS, user).argsort(descending=True).tolist()
    assert [TEXTS[i] for i in best] == [text for text, _ in selector.rank("How are you?", TEXTS, user)]


def test_a_method_without_a_latent(experiment: Path, tmp_path: Path) -> None:
    for name in ("fedbt", "fedbiscuit"):
        assert main(["train", str(experiment), f"method.name={name}", "--out", str(tmp_path / name)]) == 0
        selector = Selector.from_pretrained(tmp_path / name)
        found = selector.rewards([PROMPT] * 4, TEXTS)
        assert found.isfinite().all()
        if name == "fedbt":
            expected = logit(selector.prefer("How are you?", TEXTS[0], TEXTS[1]))
            assert float(found[0] - found[1]) == pytest.approx(expected, abs=1e-4)


def test_what_has_no_reward_is_refused(selector: Selector) -> None:
    stranger = selector.infer_user([]).model_copy(update={"model_hash": "0" * 64})
    for ask in (lambda: selector.rewards([PROMPT], ["x"], stranger), lambda: selector.reward_function(stranger)):
        with pytest.raises(UserError, match="model_hash: the user was inferred with another model"):
            ask()
    backbone = selector.info.config.backbone.model_copy(update={"choice_logits": True})
    config = selector.info.config.model_copy(update={"backbone": backbone})
    choosing = Selector(selector.parameters, selector.info.model_copy(update={"config": config}))
    user = selector.infer_user(EXAMPLES)
    with pytest.raises(UserError, match=r"choice_logits: .*single response"):
        choosing.rewards([PROMPT], ["x"], user)
    assert selector.rewards([], []).shape == (0,)


# TRL's signature -----------------------------------------------------------------------------------------------------


def lengths(prompts: Any, responses: Any) -> torch.Tensor:
    return torch.tensor([float(100 * len(p) + len(r)) for p, r in zip(prompts, responses, strict=True)])


@pytest.mark.parametrize("value", [-1e30, -87.3, -20.0, -3.0, 0.0, 0.5, 3.0, 87.3, 1e30])
def test_a_reward_is_bounded_and_an_empty_answer_is_never_better(value: float) -> None:
    def score(prompts: Any, _: Any) -> torch.Tensor:
        return torch.full((len(prompts),), value)

    said, empty = RewardFunction(score)(["p"] * 2, ["w\u0000w" * 50, " "])
    assert -10 <= said <= 10
    assert empty <= said
    if abs(value) <= 3:
        assert said == pytest.approx(value, rel=0.03)


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20))
@settings(max_examples=30, deadline=None)
def test_the_bound_keeps_the_order(values: list[float]) -> None:
    given = torch.tensor(values)
    found = bounded(given)
    assert found.abs().max() <= 10
    order = given.argsort(stable=True)
    assert (found[order].diff() >= 0).all()
    apart = given[order].diff() > 1e-3
    assert (found[order].diff()[apart & (given[order][1:].abs() < 80) & (given[order][:-1].abs() < 80)] > 0).all()
    near = given.abs() < 50
    expected = torch.sigmoid(given.double())[near]
    torch.testing.assert_close(probabilities(found)[near], expected, atol=1e-6, rtol=0)


def test_standardised_rewards_have_mean_0_and_variance_1_on_the_training_pairs(
    experiment: Path, finished: Path, selector: Selector
) -> None:
    data = load_preferences(load_config(experiment))
    found = []
    for client in data.clients["seen"]:
        pairs = [(data.pairs[i], y) for i, y in zip(client.train.index.tolist(), client.train.y.tolist(), strict=True)]
        reward = selector.reward_function(selector.infer_pairs(pairs), standardised=True)
        for pair, _ in pairs:
            found += reward([[m._asdict() for m in pair.prompt]] * 2, [pair.a, pair.b])
    values = torch.tensor(found, dtype=torch.float64)
    assert float(values.mean()) == pytest.approx(0, abs=1e-4)
    assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert selector.reward_function(standardised=True)(["p"], [""])[0] < float(values.min())


def test_a_selector_without_a_reward_scale_says_so(selector: Selector) -> None:
    bare = Selector(selector.parameters, selector.info.model_copy(update={"reward_scale": None}))
    with pytest.raises(UserError, match="standardised: the selector does not know its training rewards"):
        bare.reward_function(standardised=True)


def test_text_and_messages_are_the_same(selector: Selector) -> None:
    reward = selector.reward_function(selector.infer_user(EXAMPLES))
    plain = reward(["How are you?"] * 2, [" Fine.\n", "Go away."], trainer_state=None, completion_ids=[[1], [2]])
    messages = [[{"role": "user", "content": "How are you?"}]] * 2
    answers = [[{"role": "assistant", "content": text}] for text in ("Fine.", "Go away.")]
    assert reward(prompts=messages, completions=answers) == plain
    assert all(type(value) is float for value in plain)
    assert reward([], []) == []


def test_an_empty_completion_has_the_named_reward() -> None:
    assert RewardFunction(lengths)(["p"] * 3, ["abc", " \n", ""]) == [pytest.approx(10), -10.0, -10.0]
    assert RewardFunction(lengths, -3)(["p"], [""]) == [-3.0]


@given(st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_a_batch_means_nothing(order: list[int]) -> None:
    texts = ["a", "", "ccc", "dd", "eeeee"]
    reward = RewardFunction(lengths)
    straight = reward(["p"] * 5, texts)
    assert reward(["p"] * 5, [texts[i] for i in order]) == [straight[i] for i in order]


@pytest.mark.parametrize(
    ("prompt", "completion", "field"),
    [
        ("p", 3, r"completions\[0\]"),
        ("p", [], r"completions\[0\]"),
        ("p", [{"role": "user", "content": "x"}], r"completions\[0\]"),
        ("p", [{"role": "assistant", "content": [{"type": "image"}]}], r"completions\[0\]"),
        ("p", [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}], r"completions\[0\]"),
        ([], "x", r"prompts\[0\]"),
        ([{"role": "user", "content": None}], "x", r"prompts\[0\]"),
        (None, "x", r"prompts\[0\]"),
    ],
)
def test_what_is_no_text_is_refused(prompt: Any, completion: Any, field: str) -> None:
    with pytest.raises(UserError, match=field):
        RewardFunction(lengths)([prompt], [completion])


def test_a_completion_too_many_is_refused() -> None:
    with pytest.raises(UserError, match="completions: 2 for 1 prompts"):
        RewardFunction(lengths)(["p"], ["a", "b"])


# Whose reward --------------------------------------------------------------------------------------------------------


def test_each_row_gets_its_own_users_reward(selector: Selector) -> None:
    ada = selector.infer_user(EXAMPLES)
    reward = selector.reward_function(users={"ada": ada, 3: 0, "blend": {0: 0.5, 1: 0.5}})
    ids = ["ada", 3, 3.0, "3", "blend", "ada"]
    found = reward(["How are you?"] * 6, [TEXTS[1]] * 5 + [" "], user_id=ids, trainer_state=None)
    alone = [selector.reward_function(u)(["How are you?"], [TEXTS[1]])[0] for u in (ada, 0, {0: 0.5, 1: 0.5})]
    assert found == pytest.approx([alone[0], alone[1], alone[1], alone[1], alone[2], -10.0], abs=1e-5)
    assert len({round(r, 3) for r in alone}) == 3


def test_a_table_of_everybodys_judgements(selector: Selector) -> None:
    turned = [{**e, "chosen": e["rejected"], "rejected": e["chosen"]} for e in EXAMPLES]
    table = pd.DataFrame([{**e, "judge": j} for j, rows in ((1.0, EXAMPLES), (2.0, turned)) for e in rows])
    reward = selector.reward_function(users=table, column="judge")
    found = reward(["How are you?"] * 2, [TEXTS[1]] * 2, judge=np.array([2, 1]))
    for value, rows in zip(found, (turned, EXAMPLES), strict=True):
        expected = selector.reward_function(selector.infer_user(rows))(["How are you?"], [TEXTS[1]])
        assert value == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": ["adda"]}, r"user_id\[0\]: no user 'adda' among the 1; did you mean 'ada'"),
        ({"user_id": [None]}, r"user_id\[0\]: is None, not an id"),
        ({"user_id": [float("nan")]}, r"user_id\[0\]: is float"),
        ({"user_id": []}, "user_id: 0 for 1 completions"),
        ({"user_id": "ada"}, "user_id: must be a list"),
        ({}, "user_id: missing column"),
        ({"user": ["ada"]}, "user_id: missing column"),
    ],
)
def test_a_row_without_a_known_user_is_an_error(selector: Selector, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        selector.reward_function(users={"ada": 0})(["p"], ["x"], **columns)
    assert e.value.remedy


def test_a_column_of_users_is_not_ignored_in_silence(selector: Selector) -> None:
    columns = {"user_id": ["ada", "bob"]}
    with pytest.raises(UserError, match=r"user_id: .* is for the average user; give users="):
        selector.reward_function()(["p"] * 2, ["x", "y"], **columns)
    one = selector.reward_function(1)
    with pytest.warns(UserWarning, match="user_id: the rows name their users, and all get the rewards of one"):
        warned = one(["p"] * 2, ["x", "y"], **columns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert selector.reward_function(1, column=None)(["p"] * 2, ["x", "y"], **columns) == warned
        selector.reward_function(column=None)(["p"] * 2, ["x", "y"], **columns)
        selector.reward_function()(["p"], ["x"], user_id=None)  # what a trainer passes for a column that it dropped


def test_two_functions_have_two_names(selector: Selector) -> None:
    """A trainer logs under the name, and merges what has the same one."""
    ada, bob = (selector.infer_user(EXAMPLES[:n]) for n in (2, 3))
    users: list[Any] = [None, 0, 1, ada, bob, {0: 0.5, 1: 0.5}, {0: 0.4, 1: 0.6}]
    names = [selector.reward_function(user).__name__ for user in users]
    names += [selector.reward_function(users=table).__name__ for table in ({"a": 0}, {"a": 1}, {"b": 0})]
    names.append(selector.reward_function(0, -5).__name__)
    assert len(set(names)) == len(names) == 11
    assert all(name.isidentifier() for name in names)
    assert selector.reward_function(ada).__name__ == selector.reward_function(ada).__name__
    assert selector.reward_function(ada, name="ada").__name__ == "ada"


def test_a_trainer_logs_both_and_reads_the_column(selector: Selector, tmp_path: Path) -> None:
    """GRPO hands the data set's columns to both functions and logs each under its own name."""
    ids = ["ada", "bob", "ada", "bob"]
    one = selector.reward_function(0, name="one")
    each = selector.reward_function(users={"ada": 0, "bob": 1}, name="each")
    seen: list[tuple[list[str], list[float], list[float]]] = []

    class Watched(RewardFunction):
        def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
            found = super().__call__(prompts, completions, **columns)
            expected = []
            for p, c, who in zip(prompts, completions, columns["user_id"], strict=True):
                expected += selector.reward_function({"ada": 0, "bob": 1}[who])([p], [c])
            seen.append((columns["user_id"], found, expected))
            return found

    watched = Watched(*(getattr(each, f.name) for f in fields(each)))
    trainer, _ = two_steps("GRPO", [one, watched], tmp_path, user_id=ids)
    logged = {k for entry in trainer.state.log_history for k in entry if k.startswith("rewards/")}
    assert {"rewards/one/mean", "rewards/each/mean"} <= logged
    assert {who for named, _, _ in seen for who in named} == {"ada", "bob"} or len(seen) == 2
    for _, found, expected in seen:
        assert found == pytest.approx(expected, abs=1e-4)


# In TRL's trainers ---------------------------------------------------------------------------------------------------


def two_steps(kind: str, reward: Any, folder: Path, **columns: list[Any]) -> Any:
    """Two steps of a tiny random policy in one of TRL's trainers; the trainer, and whether its weights have moved."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved = save_llama(folder / "policy", TEMPLATE)
    policy = AutoModelForCausalLM.from_pretrained(saved)
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    prompts = [[{"role": "user", "content": e["prompt"]}] for e in EXAMPLES[:4]]
    options: dict[str, Any] = dict(
        output_dir=str(folder / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=12,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=0,
    )
    trainer = getattr(trl, f"{kind}Trainer")(
        model=policy,
        args=getattr(trl, f"{kind}Config")(**options),
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": prompts, **columns}),
        processing_class=AutoTokenizer.from_pretrained(saved),
    )
    trainer.train()
    return trainer, any(not torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_trls_trainers_learn_from_it(selector: Selector, tmp_path: Path, kind: str) -> None:
    """Two steps of a tiny random policy: the trainer logs our rewards of its own completions, and its weights move."""
    user = selector.infer_user(EXAMPLES)
    reward = selector.reward_function(user)
    calls: list[tuple[list[Any], list[Any], list[float]]] = []

    def score(prompts: Any, responses: Any) -> torch.Tensor:
        found = reward.score(prompts, responses)
        calls.append((list(prompts), list(responses), found.tolist()))
        return found

    trainer, moved = two_steps(kind, RewardFunction(score, reward.empty_reward), tmp_path)
    assert len(calls) == 2
    for dialogues, responses, found in calls:
        assert len(set(responses)) > 1
        assert selector.rewards(dialogues, responses, user).tolist() == pytest.approx(found, abs=1e-4)
    logged = [entry["rewards/selector/mean"] for entry in trainer.state.log_history if "rewards/selector/mean" in entry]
    for (_, _, found), mean in zip(calls, logged, strict=True):
        whole = found + [reward.empty_reward] * (4 - len(found))
        assert mean == pytest.approx(sum(whole) / 4, abs=1e-4)
    assert moved
