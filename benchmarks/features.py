"""Feature extraction against a plain transformers loop, on HH-RLHF helpful-base.

Ours: prompt computed once per pair, only the layers needed, length-sorted batches, results stored in a fresh cache.
Plain: both full texts of every pair through all layers, in length-sorted padded batches, same model, dtype, token
budget, text and pooling. The two take turns over slices of the same pairs, so that other load hits both; the model is
loaded (and warmed up) before any clock runs. Peak memory comes from a process of its own for each side and size.

    FEDVPA_HH_RLHF=../shared/data/hh-rlhf python benchmarks/features.py --pairs 192 --json features.json
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedvpa.backbone import Backbone
from fedvpa.backbone.models import cache_dir, load
from fedvpa.backbone.tokens import Renderer
from fedvpa.config import BackboneConfig, ExperimentConfig
from fedvpa.preferences.schema import Message, Pair

_TURN = re.compile(r"\n\n(Human|Assistant):(.*?)(?=\n\n(?:Human|Assistant):|\Z)", re.DOTALL)


def read_pairs(limit: int) -> list[Pair]:
    """The first pairs of helpful-base's training file (read here, so that only the extraction is under test)."""
    folder = Path(os.environ.get("FEDVPA_HH_RLHF", "../shared/data/hh-rlhf")) / "helpful-base"
    pairs = []
    with gzip.open(folder / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            turns = {k: _TURN.findall(text) for k, text in json.loads(line).items() if k in ("chosen", "rejected")}
            roles = {"Human": "user", "Assistant": "assistant"}
            prompt = tuple(Message(roles[role], text.strip()) for role, text in turns["chosen"][:-1])
            pairs.append(Pair(prompt, turns["chosen"][-1][1].strip(), turns["rejected"][-1][1].strip()))
            if len(pairs) == limit:
                break
    return pairs


class Ours:
    def __init__(self, config: BackboneConfig, cache: Path) -> None:
        self.config, self.cache = config, cache
        self.backbone = Backbone(config, cache)
        self.report: Any = None

    def __call__(self, pairs: list[Pair]) -> Tensor:
        found = self.backbone.encode_pairs(pairs, progress=False)
        assert found.report.computed == len(pairs), "something was cached: not a measurement"
        self.report = found.report
        return torch.stack([found.a, found.b], 1)


class Plain:
    def __init__(self, config: BackboneConfig, cache: Path) -> None:
        backbone = Backbone(config, cache)
        self.config, self.layer, self.max_tokens = config, backbone.layer, backbone.max_tokens
        lm, tokenizer = load(backbone.model, config.dtype, backbone.device)
        self.lm, self.device, self.renderer = lm.base_model, backbone.device, Renderer(tokenizer)

    @torch.inference_mode()
    def __call__(self, pairs: list[Pair]) -> Tensor:
        prompts = [self.renderer.prompt(p.prompt) for p in pairs for _ in range(2)]
        texts = self.renderer.tokenize(
            prompts, [self.renderer.space + r for p in pairs for r in (p.a, p.b)], self.max_tokens
        )
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i].prompt) - len(texts[i].response))
        out: list[Tensor | None] = [None] * len(texts)
        while order:
            longest = len(texts[order[0]].prompt) + len(texts[order[0]].response)
            take = max(1, self.config.batch_tokens // longest)
            batch, order = order[:take], order[take:]
            ids = torch.zeros(len(batch), longest, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                tokens = texts[i].prompt + texts[i].response
                ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
            states = self.lm(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states[self.layer]
            for row, i in enumerate(batch):
                start = len(texts[i].prompt)
                out[i] = states[row, start : start + len(texts[i].response)].float().mean(0).cpu()
        return torch.stack([v for v in out if v is not None]).view(len(pairs), 2, -1)


def compare(pairs: list[Pair], slices: int, config: BackboneConfig, models: Path) -> dict[str, Any]:
    """Seconds of each side over alternating slices, and how far their features are apart."""
    with tempfile.TemporaryDirectory() as fresh:
        link_models(models, Path(fresh))
        sides = {"ours": Ours(config, Path(fresh)), "plain": Plain(config, Path(fresh))}
        warm, pairs = pairs[:2], pairs[2:]
        for side in sides.values():
            side(warm)
        seconds, apart, tokens = {"ours": 0.0, "plain": 0.0}, [], 0
        cpu = dict(seconds)
        for i in range(slices):
            part, results = pairs[i::slices], {}
            for name in ("ours", "plain") if i % 2 else ("plain", "ours"):
                began, began_cpu = time.perf_counter(), time.process_time()
                results[name] = sides[name](part)
                seconds[name] += time.perf_counter() - began
                cpu[name] += time.process_time() - began_cpu
            apart.append((results["ours"] - results["plain"]).norm(dim=-1) / results["plain"].norm(dim=-1))
            tokens += sides["ours"].report.tokens
    return {
        "pairs": len(pairs),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "pairs_per_second": {k: len(pairs) / s for k, s in seconds.items()},
        "tokens_ours": tokens,
        "ratio": seconds["plain"] / seconds["ours"],
        "cpu_ratio": cpu["plain"] / cpu["ours"],
        "relative_difference": {"median": float(torch.cat(apart).median()), "max": float(torch.cat(apart).max())},
    }


def memory(side: str, size: int) -> dict[str, Any]:
    """Peak resident memory of a process that encodes ``size`` pairs, in MiB, and its seconds (loading left out)."""
    command = [sys.executable, __file__, "--alone", side, "--pairs", str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def alone(side: str, size: int, config: BackboneConfig, models: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as fresh:
        link_models(models, Path(fresh))
        run = {"ours": Ours, "plain": Plain}[side](config, Path(fresh))
        pairs = read_pairs(size + 2)
        run(pairs[:2])
        began = time.perf_counter()
        run(pairs[2:])
        seconds = time.perf_counter() - began
    # not ru_maxrss: a child process inherits its parent's
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    return {"side": side, "pairs": len(pairs) - 2, "seconds": seconds, "peak_mib": peak}


def link_models(models: Path, fresh: Path) -> None:
    """Gives a fresh cache the converted model, but no features."""
    models.mkdir(parents=True, exist_ok=True)
    (fresh / "models").symlink_to(models.resolve())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=192, help="pairs to encode (default 192)")
    parser.add_argument(
        "--slices", type=int, default=2, help="turns that the two sides take (default 2); few, for full batches"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--cache", type=Path, help="where the converted model lies (default: the usual cache)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory and growth runs")
    parser.add_argument("--alone", choices=("ours", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = BackboneConfig()
    if args.cache:
        os.environ["FEDVPA_CACHE"] = str(args.cache)
    models = cache_dir(ExperimentConfig()) / "models"
    if args.alone:
        print(json.dumps(alone(args.alone, args.pairs, config, models)))
        return
    result = compare(read_pairs(args.pairs + 2), args.slices, config, models)
    if not args.no_memory:
        sizes = [max(8, args.pairs // 8), max(16, args.pairs // 4)]
        result["growth"] = [memory(side, size) for size in sizes for side in ("ours", "plain")]
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table(
        title=f"Feature extraction, {result['pairs']} pairs of HH-RLHF helpful-base, {result['threads']} thread(s)"
    )
    for column in ("", "seconds", "CPU seconds", "pairs/s"):
        table.add_column(column, justify="left" if not column else "right")
    for side in ("ours", "plain"):
        table.add_row(
            side,
            f"{result['seconds'][side]:.1f}",
            f"{result['cpu_seconds'][side]:.1f}",
            f"{result['pairs_per_second'][side]:.2f}",
        )
    console.print(table)
    difference = result["relative_difference"]
    console.print(f"ratio {result['ratio']:.2f} (target 2.3), in CPU time {result['cpu_ratio']:.2f}")
    console.print(f"features differ by {difference['median']:.1e} (median, bf16)")
    if "growth" in result:
        table = Table(title="Growth and peak memory, each in its own process")
        for column in ("side", "pairs", "seconds", "peak MiB"):
            table.add_column(column, justify="right")
        for row in result["growth"]:
            table.add_row(row["side"], str(row["pairs"]), f"{row['seconds']:.1f}", f"{row['peak_mib']:.0f}")
        console.print(table)


if __name__ == "__main__":
    main()
