"""A held-out reward model: it learns a group's wish, and never sees the selector's prompts."""

from __future__ import annotations

import pytest
import torch

from fedvpa import UserError
from fedvpa.backbone import Backbone
from fedvpa.config import BackboneConfig
from fedvpa.evaluation.held_out import LinearReward, fit_held_out
from fedvpa.evaluation.judges import RewardModelJudge, win_rate
from fedvpa.preferences.schema import FederatedPreferences, Pair, as_prompt, prompt_key
from tiny_model import save_llama

GROUPS = ("loud", "quiet", "silent")
EXCLUDED = frozenset(prompt_key(as_prompt(f"topic {i}")) for i in range(0, 60, 3))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("held-out")
    config = BackboneConfig(model=str(save_llama(folder / "llama")), dtype="float32", max_tokens=64)
    return Backbone(config, folder / "cache", "cpu")


@pytest.fixture(scope="module")
def data() -> FederatedPreferences:
    """60 prompts; ``loud`` wants the response with exclamation marks, ``quiet`` the other, ``silent`` labels none."""
    loud, quiet = "yes!!!!!! {}!!!", "well, {}..."
    pairs, y = [], []
    for i in range(60):
        texts = (loud.format(i), quiet.format(i))
        pairs.append(Pair(as_prompt(f"topic {i}"), *(texts if i % 2 else texts[::-1])))
        y.append(1 if i % 2 else -1)
    labels = torch.tensor([y, [-v for v in y], [0] * 60], dtype=torch.int8)
    split = tuple("test" if i >= 54 else "train" for i in range(60))
    return FederatedPreferences(tuple(pairs), split, GROUPS, (1, 0, 0), labels, {})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def loud(backbone: Backbone, data: FederatedPreferences) -> LinearReward:
    return fit_held_out(backbone, data, "loud", EXCLUDED)


def test_it_has_learnt_the_groups_wish(backbone: Backbone, data: FederatedPreferences, loud: LinearReward) -> None:
    quiet = fit_held_out(backbone, data, "quiet", EXCLUDED)
    tested = data.pairs[54:]
    prompts, a, b = [p.prompt for p in tested], [p.a for p in tested], [p.b for p in tested]
    wishes = data.group_labels[0, 54:]
    assert torch.equal((loud(prompts, a) > loud(prompts, b)), wishes > 0)
    assert torch.equal((quiet(prompts, a) > quiet(prompts, b)), wishes < 0)
    assert loud.accuracy == 1.0


def test_it_never_saw_the_excluded_prompts_nor_other_splits(data: FederatedPreferences, loud: LinearReward) -> None:
    tested = {prompt_key(p.prompt) for p in data.pairs[54:]}
    assert len(loud.trained_on) == 36
    assert not loud.trained_on & (EXCLUDED | tested)


def test_it_serves_as_a_judge(data: FederatedPreferences, loud: LinearReward) -> None:
    judge = RewardModelJudge(loud, name="loud", trained_on=loud.trained_on, aligned_on=EXCLUDED)
    prompts = [as_prompt(f"topic {i}") for i in range(54, 60)]
    found = win_rate(judge, prompts, ["yes!!!!!! 7!!!"] * 6, ["well, 7..."] * 6)
    assert (found.rate, found.inconsistent) == (1.0, 0.0)


def test_the_draw_is_seeded_and_bounded(backbone: Backbone, data: FederatedPreferences, loud: LinearReward) -> None:
    assert torch.equal(fit_held_out(backbone, data, "loud", EXCLUDED).w, loud.w)
    few = [fit_held_out(backbone, data, "loud", EXCLUDED, pairs=24, seed=s).trained_on for s in (0, 1)]
    assert len(few[0]) == len(few[1]) == 24
    assert few[0] != few[1]


def test_what_cannot_be_fitted(backbone: Backbone, data: FederatedPreferences) -> None:
    with pytest.raises(UserError, match="group: no group 'lowd'; choose from loud, quiet"):
        fit_held_out(backbone, data, "lowd", EXCLUDED)
    with pytest.raises(UserError, match="exclude: only 0 prompts are left"):
        fit_held_out(backbone, data, "silent", EXCLUDED)
    everything = {prompt_key(p.prompt) for p in data.pairs}
    with pytest.raises(UserError, match="exclude: only 0 prompts are left"):
        fit_held_out(backbone, data, "loud", everything)
