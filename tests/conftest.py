"""What every test shares: one thread per process, so that tests run side by side and sums have one order; a tiny
experiment on disk, and its finished run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest
import yaml

from fedvpa.apps.cli import main

hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch  # not above: the process that only hands tests to workers has no need of it

    torch.set_num_threads(1)


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs the command line in this process."""

    def run(*arguments: Any) -> Ended:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return Ended(code, *capsys.readouterr())

    return run


def preference_lines(users: int = 12, pairs: int = 10) -> list[str]:
    """Users of two groups with opposite wishes: the longer response, or the shorter one."""
    lines = []
    for u in range(users):
        for k in range(pairs):
            number = (7 * u + k) % 30
            long, short = f"Answer {number}, at some length and with care.", f"No {number}."
            chosen, rejected = (long, short) if u % 2 else (short, long)
            row = {
                "user_id": f"u{u}",
                "group": "longer" if u % 2 else "shorter",
                "prompt": f"Question {number} of many?",
            }
            lines.append(json.dumps({**row, "chosen": chosen, "rejected": rejected}))
    return lines


def rating_lines(users: int = 24, prompts: int = 10) -> list[str]:
    """Users who rate the longer response to a question 4 or 5 and the shorter 1 or 2, or the other way round."""
    lines = []
    for u in range(users):
        for k in range(prompts):
            number = (7 * u + k) % 30
            long, short = f"Answer {number}, at some length and with care.", f"No {number}."
            for text, liked in ((long, u % 2 == 1), (short, u % 2 == 0)):
                row = {"user": f"u{u}", "prompt": f"Question {number} of many?", "text": text}
                lines.append(json.dumps({**row, "rating": (4 if liked else 1) + (u + k) % 2}))
    return lines


def candidate_lines(pairs: int) -> list[str]:
    """Rows with a longer and a shorter answer, for those who choose."""
    rows = (
        {"prompt": f"Topic {k}, please?", "a": f"Topic {k} with much care and in detail.", "b": f"{k}, no."}
        for k in range(pairs)
    )
    return [json.dumps(row) for row in rows]


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration that trains in about a second: a tiny model, a dozen users from a file."""
    from tiny_model import save_llama

    folder = tmp_path_factory.mktemp("experiment")
    (folder / "data.jsonl").write_text("\n".join(preference_lines()) + "\n")
    tree = {
        "data": {"name": "jsonl", "path": str(folder / "data.jsonl"), "pairs_per_client": 10},
        "backbone": {"model": str(save_llama(folder / "llama")), "dtype": "float32", "max_tokens": 128},
        "model": {"latent_dim": 4, "hidden_dim": 12, "encoder_dim": 8},
        "laplace": {"latent_dim": 4},
        "method": {"name": "fedvpa-gp", "samples": 2},
        "federation": {
            "clients": 8,
            "unseen_clients": 2,
            "validation_clients": 2,
            "sampled_clients": 4,
            "context_pairs": 4,
            "rounds": 8,
            "local_steps": 2,
            "device": "cpu",
        },
        "evaluation": {"every": 4, "bootstrap": 100},
        "output": {"cache": str(folder / "cache"), "checkpoint_every": 2},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return folder / "tiny.yaml"


@pytest.fixture(scope="session")
def finished(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `fedvpa train`; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", str(experiment), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def judged_run(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of fedvpa-laplace on people's ratings; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "ratings.jsonl").write_text("\n".join(rating_lines()) + "\n")
    overrides = ("method.name=fedvpa-laplace", "data.name=table", f"data.path={folder / 'ratings.jsonl'}")
    sizes = ("federation.clients=16", "federation.unseen_clients=4", "federation.validation_clients=4")
    more = ("laplace.rounds=60", "laplace.learning_rate=0.002", "laplace.components=2", "data.min_votes=2")
    assert main(["train", str(experiment), *overrides, *sizes, *more, "--out", str(folder / "run")]) == 0
    return folder / "run"
