"""The whole way with SmolLM2-135M: a selector's run, a policy, an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from conftest import Cli

pytestmark = pytest.mark.slow


def test_a_policy_from_smollm2(cli: Cli, tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"Tell me something about the number {i}."}) for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    users = [
        {"user_id": f"u{u}", "group": "longer" if u % 2 else "shorter", "prompt": f"What is {7 * u + k}?"}
        | dict(
            zip(
                ("chosen", "rejected"),
                (("A number.", "It is a number, and a nice one."))[:: 1 - 2 * (u % 2)],
                strict=True,
            )
        )
        for u in range(8)
        for k in range(6)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in users))
    small = {"clients": 4, "unseen_clients": 2, "validation_clients": 2, "sampled_clients": 4, "rounds": 8}
    experiment = {
        "data": {"name": "jsonl", "path": str(tmp_path / "data.jsonl")},
        "model": {"latent_dim": 4, "hidden_dim": 16, "encoder_dim": 8},
        "federation": {**small, "context_pairs": 2, "device": "cpu"},
        "evaluation": {"every": 8, "bootstrap": 100},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(experiment))
    assert cli("train", tmp_path / "run.yaml", "--out", tmp_path / "run").code == 0
    settings = [
        f"prompts.path={tmp_path / 'prompts.jsonl'}",
        *("prompts.training=4", "prompts.judging=2", "candidates.number=2", "candidates.max_new_tokens=16"),
        *("labels.users=0", "labels.pairs=8", "training.batch=8", "training.micro_batch=4", "policy.device=cpu"),
        "training.start=0",  # at first the policy is its reference, and DPO's loss is known
        "training.sft=0",
        *("judging.best_of=2", "judging.blend=[]", "judging.bootstrap=100"),
    ]
    ended = cli("align", tmp_path / "run", "--out", tmp_path / "policy", *settings)
    assert ended.code == 0, ended.err
    result = json.loads((tmp_path / "policy" / "alignment.json").read_text())
    assert result["model"]["name"] == "smollm2-135m-instruct"
    assert result["training"]["history"][0]["loss"] == pytest.approx(0.693, abs=0.02)
    assert {c["kind"] for c in result["switching"]} == {"policy", "best of 2", "base model, again"}
    ended = cli("generate", tmp_path / "policy", "--prototype", 0, "--prompt", "What is a fox?", "--max-new-tokens", 8)
    assert ended.code == 0
    assert ended.out.strip()
