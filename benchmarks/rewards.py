"""The selector as a reward against the trainer's own work on the same completions: does scoring slow a trainer?

A GRPO or RLOO step on n completions generates them, runs the policy forward over them (and over the reference's too
where beta > 0), and runs it forward and backward. Timed here: the reward function, on completions that no cache knows,
one forward for the log-probabilities, and one forward and backward. The policy is the backbone's own model, so both
sides have the same size. Generation, which costs more than either, is left out: the share of a whole step is smaller
than what is shown. The selector is untrained: its speed does not depend on its weights.

    FEDVPA_HH_RLHF=../shared/data/hh-rlhf python benchmarks/rewards.py --json rewards.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import fedvpa
from features import link_models, read_pairs
from fedvpa.apps.runs import environment
from fedvpa.backbone import Backbone
from fedvpa.backbone.models import cache_dir, load
from fedvpa.config import ExperimentConfig, parse_config
from fedvpa.federation.moments import Standardizer
from fedvpa.methods.base import Setup
from fedvpa.methods.registry import create
from fedvpa.preferences.schema import Prompt
from fedvpa.preferences.seeding import generator
from fedvpa.selector import FORMAT, Parameters, Selector, SelectorInfo

CLUSTERS = 2
ROWS = 8
"""Completions in one of the policy's forward passes."""
TARGET = 1.0


def make_selector(cache: Path) -> Selector:
    """An untrained selector of fedvpa-gp with the default settings."""
    config = parse_config({"method": {"name": "fedvpa-gp"}, "output": {"cache": str(cache)}})
    backbone = Backbone(config.backbone, cache)
    method = create(config.method.name, Setup(config, backbone.dim, 1, CLUSTERS))
    standardizer = Standardizer(torch.zeros(backbone.dim), torch.ones(backbone.dim))
    server = method.init_server(generator(0, "rewards"))
    info = SelectorInfo(
        format=FORMAT,
        version=fedvpa.__version__,
        method=config.method.name,
        config=config,
        features=backbone.dim,
        clusters=CLUSTERS,
        groups=(),
        backbone=dict(backbone.identity),
        default_inference={0: "amortised"},
        fingerprint={},
    )
    return Selector(Parameters.of(server, standardizer), info)


class Policy:
    """The trainer's side: log-probabilities of completions, alone or with the gradient."""

    def __init__(self, selector: Selector) -> None:
        backbone = selector.backbone
        self.lm, self.tokenizer = load(backbone.model, "auto", backbone.device)
        self.device = backbone.device
        self.end = self.tokenizer.eos_token_id

    def completions(self, texts: list[str], tokens: int) -> list[str]:
        """Texts of exactly ``tokens`` tokens each, cut out of the given ones laid end to end."""
        ids = self.tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"]
        return [self.tokenizer.decode(ids[i : i + tokens]) for i in range(0, len(ids) - tokens + 1, tokens)]

    def step(self, prompts: list[Prompt], completions: list[str], gradient: bool) -> None:
        self.lm.requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            for start in range(0, len(prompts), ROWS):
                loss = self._loss(prompts[start : start + ROWS], completions[start : start + ROWS])
                if gradient:
                    loss.backward()
        self.lm.zero_grad(set_to_none=True)

    def _loss(self, prompts: list[Prompt], completions: list[str]) -> torch.Tensor:
        heads = [
            self.tokenizer.apply_chat_template([m._asdict() for m in p], add_generation_prompt=True, return_dict=True)[
                "input_ids"
            ]
            for p in prompts
        ]
        tails = [self.tokenizer(c, add_special_tokens=False)["input_ids"] for c in completions]
        left, right = max(map(len, heads)), max(map(len, tails))
        rows = [
            [self.end] * (left - len(h)) + h + t + [self.end] * (right - len(t))
            for h, t in zip(heads, tails, strict=True)
        ]
        seen = [
            [0] * (left - len(h)) + [1] * (len(h) + len(t)) + [0] * (right - len(t))
            for h, t in zip(heads, tails, strict=True)
        ]
        ids, mask = torch.tensor(rows, device=self.device), torch.tensor(seen, device=self.device)
        out = self.lm(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=right + 1)
        logits = out.logits[:, :-1]
        each = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, left:].flatten(), reduction="none")
        return (each * mask[:, left:].flatten()).sum() / mask[:, left:].sum()


def measure(count: int, generations: int, tokens: int, models: Path) -> dict[str, Any]:
    """Seconds of each side over the same completions; the sides take turns over two halves of the prompts."""
    with tempfile.TemporaryDirectory() as fresh:
        link_models(models, Path(fresh))
        selector = make_selector(Path(fresh))
        policy = Policy(selector)
        reward = selector.reward_function()
        pairs = read_pairs(8 * (count + 1) * generations)  # so many that their texts fill the completions
        texts = policy.completions([p.a for p in pairs], tokens)
        prompts = [p.prompt for p in pairs if sum(len(m.content) for m in p.prompt) < 1200][: count + 1]
        rows = [p for p in prompts for _ in range(generations)]
        texts = texts[: len(rows)]
        assert len(texts) == len(rows), "too few texts"

        def score(prompts: list[Prompt], texts: list[str]) -> None:
            found = reward([[m._asdict() for m in p] for p in prompts], texts)
            assert len(found) == len(texts)

        sides: dict[str, Callable[[list[Prompt], list[str]], None]] = {
            "reward": score,
            "forward": lambda p, t: policy.step(p, t, gradient=False),
            "forward and backward": lambda p, t: policy.step(p, t, gradient=True),
        }
        for side in sides.values():  # warm-up: loads the models
            side(rows[:generations], texts[:generations])
        rows, texts = rows[generations:], texts[generations:]
        seconds, cpu = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0)
        middle = (count // 2) * generations
        for turn, part in enumerate((slice(0, middle), slice(middle, None))):
            for name in sides if turn else reversed(sides):
                began, began_cpu = time.perf_counter(), time.process_time()
                sides[name](rows[part], texts[part])
                seconds[name] += time.perf_counter() - began
                cpu[name] += time.process_time() - began_cpu
        began = time.perf_counter()
        score(rows, texts)
        again = time.perf_counter() - began
    ratio = seconds["forward"] / seconds["reward"]
    target = {"name": "texts/s of the reward against the policy's forward", "target": TARGET, "value": ratio}
    return {
        "texts": len(texts),
        "generations": generations,
        "tokens": tokens,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "texts_per_second": {k: len(texts) / s for k, s in seconds.items()},
        "cached_texts_per_second": len(texts) / again,
        "share_of_step": seconds["reward"] / sum(seconds.values()),
        "targets": [target | {"met": ratio >= TARGET}],
        "environment": environment(),
    }


def show(result: dict[str, Any]) -> None:
    console = Console()
    size = f"{result['texts']} completions of {result['tokens']} tokens, {result['generations']} per prompt"
    table = Table(title=f"Reward function and trainer, {size}, {result['environment']['threads']} thread(s)")
    for column in ("", "seconds", "CPU seconds", "texts/s"):
        table.add_column(column, justify="right" if column else "left")
    for name, seconds in result["seconds"].items():
        speed = result["texts_per_second"][name]
        table.add_row(name, f"{seconds:.1f}", f"{result['cpu_seconds'][name]:.1f}", f"{speed:.2f}")
    table.add_row("reward, cached texts", "", "", f"{result['cached_texts_per_second']:.0f}")
    console.print(table)
    (target,) = result["targets"]
    console.print(f"{target['name']}: {target['value']:.2f} (target {TARGET}): {'met' if target['met'] else 'missed'}")
    console.print(f"share of a step, generation left out: {result['share_of_step']:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=6, help="prompts (default 6)")
    parser.add_argument("--generations", type=int, default=8, help="completions per prompt (default 8)")
    parser.add_argument("--tokens", type=int, default=96, help="tokens per completion (default 96)")
    parser.add_argument("--threads", type=int, default=1, help="(default 1)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--cache", type=Path, help="where the converted model lies (default: the usual cache)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.cache:
        os.environ["FEDVPA_CACHE"] = str(args.cache)
    result = measure(args.prompts, args.generations, args.tokens, cache_dir(ExperimentConfig()) / "models")
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
