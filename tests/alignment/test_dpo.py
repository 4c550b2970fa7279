"""One DPO run over opposite wishes: it learns to switch, its reference is the base model, and it survives a kill."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import TrainerCallback
from trl import DPOTrainer

from fedvpa.alignment import dpo
from fedvpa.alignment.config import PolicyConfig, TrainingConfig
from fedvpa.alignment.dpo import OpenEndCollator, Trained, train
from fedvpa.alignment.labelling import Preference
from fedvpa.alignment.language import Conditioned, LanguageModel, Response
from fedvpa.preferences.schema import as_prompt

PROMPTS = [as_prompt(f"Question {i}?") for i in range(8)]
LATENTS = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
GOOD, BAD = Response("aaaa", 4, False), Response("zz zz zz", 8, True)
PREFERENCES = [
    Preference(i, k, *((GOOD, BAD) if k == 0 else (BAD, GOOD)), 1.0) for i in range(len(PROMPTS)) for k in range(2)
]
CONFIG = TrainingConfig(sft=0.0, epochs=4, batch=4, micro_batch=2, learning_rate=1e-2, lora_rank=4, checkpoint_every=5)
KINDS = [Conditioned("soft-prompt", 2, 1.0, 3, 1.0, 2), Conditioned("added", 1, 1.0, 3, 1.0, 2), None]


def run(
    chatty: Path, folder: Path, how: Conditioned | None, config: TrainingConfig = CONFIG, **options: Any
) -> Trained:
    model = LanguageModel.load(PolicyConfig(model=str(chatty), dtype="float32", device="cpu"), folder / "cache", how)
    console = options.get("console") or Console(file=io.StringIO())
    return train(model, LATENTS, PROMPTS, options.get("data", PREFERENCES), config, 0, folder / "training", console)


def adapter(trained: Trained) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trained.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("how", KINDS[:2], ids=lambda h: h.kind)
def test_opposite_wishes_are_learnt_at_once(chatty: Path, tmp_path: Path, how: Conditioned) -> None:
    console = Console(file=(out := io.StringIO()))
    trained = run(chatty, tmp_path, how, CONFIG.model_copy(update={"epochs": 6}), console=console)
    assert trained.steps == len(trained.history) == 24
    assert trained.history[0]["loss"] == pytest.approx(0.6931, abs=0.05), "at first the policy is nearly its reference"
    assert sum(r["rewards/accuracies"] for r in trained.history[-4:]) / 4 > 0.9
    assert "step 24/24" in out.getvalue()
    assert "s/step  0 s left" in out.getvalue()


@pytest.mark.parametrize("how", KINDS[:2], ids=lambda h: h.kind)
def test_the_projection_starts_small_and_the_reference_knows_no_latent(
    chatty: Path, tmp_path: Path, how: Conditioned
) -> None:
    still = run(chatty, tmp_path, how, CONFIG.model_copy(update={"learning_rate": 1e-30, "epochs": 1, "start": 0.2}))
    projection = still.model.get_input_embeddings().latent_projection
    size = float(projection.modules_to_save["default"].weight.detach().pow(2).mean().sqrt())
    assert size == pytest.approx(0.2 / 3**0.5, rel=0.25)
    assert not projection.original_module.weight.any()
    assert still.history[0]["loss"] != pytest.approx(0.6931, abs=1e-6)
    zero = run(chatty, tmp_path / "zero", how, CONFIG.model_copy(update={"start": 0.0}))
    assert zero.history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_the_likelihood_of_chosen_responses_is_part_of_the_loss(chatty: Path, tmp_path: Path) -> None:
    longer = CONFIG.model_copy(update={"start": 0.0, "epochs": 8})  # the preference is learnt after the likelihood
    alone, both = (run(chatty, tmp_path / str(w), KINDS[0], longer.model_copy(update={"sft": w})) for w in (0.0, 0.5))
    first = both.history[0]["loss"] - alone.history[0]["loss"]
    assert 0.25 * math.log(256) < first < math.log(256), "half of a random model's loss per token, for 256 of them"
    assert both.history[-1]["logps/chosen"] > alone.history[-1]["logps/chosen"]
    assert sum(r["rewards/accuracies"] for r in both.history[-4:]) / 4 > 0.9


def test_without_a_latent_opposite_wishes_cannot_be_learnt(chatty: Path, tmp_path: Path) -> None:
    trained = run(chatty, tmp_path, None)
    right = [r["rewards/accuracies"] for r in trained.history[-8:]]
    assert sum(right) / 8 <= 0.75


def test_a_killed_run_ends_like_one_that_was_not(chatty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(chatty, tmp_path / "whole", KINDS[0])

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 8:
                raise KeyboardInterrupt

    real, computed = DPOTrainer.compute_ref_log_probs, []
    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", lambda self, *a: computed.append(1) or real(self, *a))
    plain = dpo._trainer
    with monkeypatch.context() as patched:

        def dying(*arguments: Any) -> Any:
            trainer = plain(*arguments)
            trainer.add_callback(Kill())
            return trainer

        patched.setattr(dpo, "_trainer", dying)
        with pytest.raises(KeyboardInterrupt):
            run(chatty, tmp_path / "killed", KINDS[0])
    assert len(computed) == 8, "sixteen pairs, two at a time"
    half = tmp_path / "killed" / "training" / "checkpoints" / "checkpoint-7"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    console = Console(file=(out := io.StringIO()))
    again = run(chatty, tmp_path / "killed", KINDS[0], console=console)
    assert "resuming after step 5 of 16" in out.getvalue()
    assert len(computed) == 8, "the reference is computed once"
    assert not half.exists()
    for name, p in adapter(whole).items():
        torch.testing.assert_close(adapter(again)[name], p, msg=name)
    assert [r["loss"] for r in again.history] == pytest.approx([r["loss"] for r in whole.history])


def test_a_response_that_was_cut_has_no_end() -> None:
    collator = OpenEndCollator(pad_token_id=0)
    example = {"prompt_ids": [5], "chosen_ids": [6, 7, 1], "rejected_ids": [8, 1]}
    out = collator([{**example, "chosen_capped": True, "rejected_capped": False}])
    assert out["input_ids"].tolist() == [[5, 6, 7], [5, 8, 1]]
    assert out["completion_mask"].tolist() == [[0, 1, 1], [0, 1, 1]]


def test_the_reference_is_the_base_model(chatty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities of the whole response, its end included unless it was cut, behind neutral tokens."""
    seen: list[Any] = []
    plain = dpo._trainer
    monkeypatch.setattr(dpo, "_trainer", lambda *a: seen.append(plain(*a)) or seen[-1])
    run(chatty, tmp_path, KINDS[0], CONFIG.model_copy(update={"epochs": 1}))
    row = next(r for r in seen[0].train_dataset if r["rejected"].startswith("zz"))
    base = LanguageModel.load(PolicyConfig(model=str(chatty), dtype="float32", device="cpu"), tmp_path / "cache")
    head = [base.tokenizer.bos_token_id] * 2 + row["prompt_ids"][2:]
    for name in ("chosen", "rejected"):
        ids = row[f"{name}_ids"][:-1] if row[f"{name}_capped"] else row[f"{name}_ids"]
        assert (ids[-1] == base.tokenizer.eos_token_id) != row[f"{name}_capped"]
        with torch.no_grad():
            logp = base.lm(torch.tensor([head + ids])).logits.log_softmax(-1)[0, len(head) - 1 : -1]
        by_hand = float(logp[range(len(ids)), ids].sum())
        assert row[f"ref_{name}_logps"] == pytest.approx(by_hand, abs=1e-3)
