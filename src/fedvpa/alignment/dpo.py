"""One run of TRL's DPOTrainer over the pairs of all latents (DPO: Rafailov et al. 2023, arXiv 2305.18290).

z travels in the prompts' text, as virtual tokens, so the trainer is TRL's own. Reference log-probabilities are computed
once, with the adapter off, and kept beside the data; checkpoints make a killed run go on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from rich.console import Console
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from fedvpa.alignment.conditioning import PROJECTION
from fedvpa.alignment.config import TrainingConfig
from fedvpa.alignment.head import cpu_head
from fedvpa.alignment.labelling import Preference
from fedvpa.alignment.language import LanguageModel, digest
from fedvpa.backbone.tokens import Renderer
from fedvpa.preferences.schema import Prompt
from fedvpa.preferences.seeding import generator

LINES = 10
_CHECKPOINT = ("trainer_state.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")

_LOGGED = (
    *("step", "epoch", "loss", "learning_rate", "grad_norm"),
    *(f"rewards/{which}" for which in ("chosen", "rejected", "margins", "accuracies")),
    *("logps/chosen", "logps/rejected"),
)


@dataclass(frozen=True)
class Trained:
    """A policy after training.

    Attributes:
        model: PEFT's model around the language model, on its way to `policy.PersonalizedPolicy`.
        history: what TRL logged, a record per step: loss, rewards/margins, rewards/accuracies, ...
        steps: in all; step_seconds: mean wall clock of a step of this process, None if there was none.
        reference_seconds: for the reference log-probabilities, near zero where they were kept from before.
    """

    model: Any
    history: list[dict[str, Any]]
    steps: int
    step_seconds: float | None
    reference_seconds: float


class OpenEndCollator(DataCollatorForPreference):
    """TRL's collator, for responses of which some were cut at the longest length.

    TRL ends every response with the end-of-sequence token. A response that was cut has none: with it the policy would
    learn to stop in the middle of a sentence.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        opened = [
            {**e, **{f"{k}_ids": e[f"{k}_ids"][:-1] for k in ("chosen", "rejected") if e[f"{k}_capped"]}}
            for e in examples
        ]
        return super().torch_call(opened)


def train(
    model: LanguageModel,
    latents: Tensor | None,
    prompts: Sequence[Prompt],
    preferences: Sequence[Preference],
    config: TrainingConfig,
    seed: int,
    folder: Path,
    console: Console,
) -> Trained:
    """Trains a LoRA adapter, and the latents' projection with it.

    Args:
        model: the frozen base model; it is changed in place.
        latents: (latents, d) the table that preferences refer to, or None for a policy without a latent.
        folder: data, reference log-probabilities and checkpoints; what a killed run left there is used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if model.embedding is not None and latents is not None:
        model.embedding.latents = latents.to(model.embedding.latents.device, torch.float32)
    data = _dataset(model, prompts, preferences, config.micro_batch, seed, folder)
    progress = _Progress(console, config.checkpoint_every)
    began = time.perf_counter()
    with _quiet(console):
        trainer = _trainer(model, data, config, seed, folder, progress)
        reference = time.perf_counter() - began
        console.print(f"reference log-probabilities of {len(data)} pairs: {reference:.0f} s", highlight=False)
        if model.embedding is not None:
            model.embedding.start(config.start, generator(seed, "projection"))
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder / "checkpoints"))
    return Trained(
        model=trainer.model.eval(),
        history=[{k: r[k] for k in _LOGGED if k in r} for r in trainer.state.log_history if "loss" in r],
        steps=trainer.state.global_step,
        step_seconds=progress.step_seconds,
        reference_seconds=reference,
    )


@contextlib.contextmanager
def _quiet(console: Console) -> Iterator[None]:
    """Keeps the libraries' warnings and, where there is no terminal, TRL's bar out of the way."""
    verbosity, bar = transformers_logging.get_verbosity(), os.environ.get("TQDM_DISABLE")
    transformers_logging.set_verbosity_error()
    if not console.is_terminal:
        os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        os.environ.pop("TQDM_DISABLE", None)
        if bar is not None:
            os.environ["TQDM_DISABLE"] = bar


def _trainer(
    model: LanguageModel, data: Any, config: TrainingConfig, seed: int, folder: Path, progress: TrainerCallback
) -> DPOTrainer:
    arguments = DPOConfig(
        output_dir=str(folder / "checkpoints"),
        beta=config.beta,
        loss_type=["sigmoid", "sft"] if config.sft else ["sigmoid"],
        loss_weights=[1.0, config.sft] if config.sft else [1.0],
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup if config.warmup < 1 else 0.999,  # below 1 it is a share of the steps
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.batch // config.micro_batch,
        train_sampling_strategy="sequential",  # `_arranged`; TRL's own grouping by length is another after a resumption
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=config.micro_batch,
        max_length=None,
        remove_unused_columns=False,  # the collator reads chosen_capped and rejected_capped
        gradient_checkpointing=False,
        bf16=False,  # no autocast: the model is in its dtype already
        fp16=False,
        use_cpu=model.lm.device.type == "cpu",
        dataloader_pin_memory=False,
        save_strategy="steps",
        save_steps=config.checkpoint_every,
        save_total_limit=2,
        logging_steps=1,
        disable_tqdm=True,
        report_to=[],
        seed=seed,
        data_seed=seed,
    )
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        modules_to_save=None if model.embedding is None else [PROJECTION],
    )
    with cpu_head(model.lm):
        trainer = DPOTrainer(
            model=model.lm,
            args=arguments,
            train_dataset=data,
            processing_class=model.tokenizer,
            data_collator=OpenEndCollator(pad_token_id=model.tokenizer.pad_token_id),
            peft_config=adapter,
            callbacks=[progress],
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _dataset(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    preferences: Sequence[Preference],
    micro_batch: int,
    seed: int,
    folder: Path,
) -> datasets.Dataset:
    """The pairs in TRL's columns, on disk, so that what TRL computes from them is kept beside them."""
    space = Renderer(model.tokenizer).space
    rows = []
    for x in _arranged(model, prompts, preferences, micro_batch, seed):
        prompt = model.render(prompts[x.prompt], None if model.tokens is None else x.latent)
        row = {"prompt": prompt, "chosen": space + x.chosen.text, "rejected": space + x.rejected.text}
        rows.append({**row, "chosen_capped": x.chosen.capped, "rejected_capped": x.rejected.capped})
    path = folder / f"pairs-{digest(rows)[:16]}"
    datasets.disable_progress_bars()
    if not path.is_dir():
        fresh = folder / f".{path.name}.{os.getpid()}"
        datasets.Dataset.from_list(rows).save_to_disk(fresh)
        fresh.rename(path)
    return datasets.load_from_disk(path)


def _arranged(
    model: LanguageModel, prompts: Sequence[Prompt], preferences: Sequence[Preference], micro_batch: int, seed: int
) -> list[Preference]:
    """Pairs of similar length side by side, so that a micro-batch holds little padding; micro-batches in random order.

    A couple of responses that two latents order differently mostly stays together, where its parts in the gradient that
    do not depend on the latent cancel.
    """
    size = [len(ids) for ids in model.encode(prompts)]
    longest = [size[x.prompt] + max(x.chosen.tokens, x.rejected.tokens) for x in preferences]
    texts = [sorted((x.chosen.text, x.rejected.text)) for x in preferences]
    order = sorted(range(len(preferences)), key=lambda i: (longest[i], preferences[i].prompt, texts[i], i))
    batches = [order[i : i + micro_batch] for i in range(0, len(order), micro_batch)]
    whole = batches[: len(order) // micro_batch]
    mixed = torch.randperm(len(whole), generator=generator(seed, "order of pairs")).tolist()
    return [preferences[i] for b in [*(whole[k] for k in mixed), *batches[len(whole) :]] for i in b]


def _last_checkpoint(folder: Path) -> str | None:
    """The latest whole checkpoint; halves, which a kill can leave behind, are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.removeprefix("checkpoint-")))
    for path in reversed(found):
        try:
            json.loads((path / _CHECKPOINT[0]).read_text(encoding="utf-8"))
            if all((path / name).is_file() for name in _CHECKPOINT):
                return str(path)
        except (OSError, ValueError):
            pass
        shutil.rmtree(path)
    return None


class _Progress(TrainerCallback):
    """A line about every tenth of the steps: loss, margin, share of pairs in the right order, seconds, time left."""

    def __init__(self, console: Console, every: int) -> None:
        self.console, self.every = console, every
        self.began, self.first, self.done = 0.0, 0, 0

    @property
    def step_seconds(self) -> float | None:
        return None if self.done == self.first else (self.ended - self.began) / (self.done - self.first)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = self.ended = time.perf_counter()
        self.first = self.done = state.global_step
        if state.global_step:
            self.console.print(f"resuming after step {state.global_step} of {state.max_steps}", highlight=False)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        self.ended, self.done = time.perf_counter(), state.global_step
        step = -(-state.max_steps // LINES)
        if state.global_step % step and state.global_step != state.max_steps:
            return
        each = self.step_seconds or 0.0
        self.console.print(
            f"training: step {state.global_step}/{state.max_steps}  loss {float(logs['loss']):.3f}  "
            f"margin {float(logs['rewards/margins']):.2f}  right {float(logs['rewards/accuracies']):.2f}  "
            f"{each:.2f} s/step  {each * (state.max_steps - state.global_step):.0f} s left",
            highlight=False,
            soft_wrap=True,
        )
