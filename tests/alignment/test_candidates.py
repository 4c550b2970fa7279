"""Responses: reproducible, cached in shards, resumable in the middle."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fedvpa.alignment.candidates import Request, Writing, capped_share, respond
from fedvpa.alignment.conditioning import PROJECTION
from fedvpa.alignment.config import PolicyConfig
from fedvpa.alignment.language import Conditioned, LanguageModel
from fedvpa.alignment.sampling import Sampling
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Message, as_prompt

WRITING = Writing(0, Sampling(), 12, 4)
PROMPTS = [as_prompt(t) for t in ("Hi", "What is a fox?", "Tell me all about the sea.", "Why?", "Who are you?")]
REQUESTS = [Request(p, n) for p in PROMPTS for n in range(3)]


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def base(chatty: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel.load(PolicyConfig(model=str(chatty), dtype="float32"), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def policy(chatty: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A model that listens to its latent; "every" token ends a response now and then."""
    how = Conditioned("soft-prompt", 2, 1.0, 4, 1.0, 2)
    config = PolicyConfig(model=str(chatty), dtype="float32")
    model = LanguageModel.load(config, tmp_path_factory.mktemp("cache"), how)
    torch.manual_seed(0)
    torch.nn.init.normal_(getattr(model.embedding, PROJECTION).weight)
    return model


def test_responses_repeat_and_differ(base: LanguageModel, tmp_path: Path) -> None:
    first = respond(base, REQUESTS, WRITING, tmp_path / "a", quiet(), "candidates")
    assert first == respond(base, REQUESTS, WRITING, tmp_path / "b", quiet(), "candidates")
    assert len({r.text for r in first}) == len(REQUESTS)
    other = respond(base, REQUESTS, WRITING._replace(seed=1), tmp_path / "b", quiet(), "candidates")
    assert [r.text for r in other] != [r.text for r in first]
    few = respond(base, REQUESTS[4:7], WRITING, tmp_path / "c", quiet(), "candidates")
    assert few == first[4:7], "a response depends on its prompt and number, not on the others"
    assert all(r.tokens == 12 for r in first if r.capped)
    assert capped_share(first) == sum(r.capped for r in first) / 15


def test_a_killed_run_goes_on(base: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = respond(base, REQUESTS, WRITING, tmp_path / "whole", quiet(), "candidates")
    written: list[int] = []
    real = LanguageModel.write

    def dying(self: LanguageModel, prompts: Any, *rest: Any) -> Any:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(len(prompts))
        return real(self, prompts, *rest)

    monkeypatch.setattr(LanguageModel, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        respond(base, REQUESTS, WRITING, tmp_path / "killed", quiet(), "candidates")
    assert len(list((tmp_path / "killed").iterdir())) == 2
    monkeypatch.setattr(LanguageModel, "write", real)
    again: list[int] = []
    monkeypatch.setattr(
        LanguageModel, "write", lambda self, prompts, *rest: again.append(len(prompts)) or real(self, prompts, *rest)
    )
    assert respond(base, REQUESTS, WRITING, tmp_path / "killed", quiet(), "candidates") == whole
    assert sum(again) == len(REQUESTS) - 8, "the two finished batches of four are not generated again"
    again.clear()
    assert respond(base, REQUESTS, WRITING, tmp_path / "killed", quiet(), "candidates") == whole
    assert not again


def test_a_damaged_shard_is_named(base: LanguageModel, tmp_path: Path) -> None:
    respond(base, REQUESTS[:3], WRITING, tmp_path, quiet(), "candidates")
    (shard,) = tmp_path.iterdir()
    shard.write_text(shard.read_text()[:-20])
    with pytest.raises(UserError, match="damaged"):
        respond(base, REQUESTS[:3], WRITING, tmp_path, quiet(), "candidates")


def test_progress_names_speed_and_time_left(base: LanguageModel, tmp_path: Path) -> None:
    console = Console(file=(out := io.StringIO()))
    respond(base, REQUESTS, WRITING, tmp_path, console, "candidates")
    assert "candidates: 15/15 responses" in out.getvalue()
    assert "tokens/s" in out.getvalue()
    assert "0 s left" in out.getvalue()


def test_latents_side_by_side(policy: LanguageModel, tmp_path: Path) -> None:
    """Different latents in one batch, and none at all; together they give what each gives alone."""
    latents = [(1.0, 0.0, 0.0, 2.0), (-1.0, 0.5, 0.0, 0.0), None]
    requests = [Request(p, 0, z) for p in PROMPTS for z in latents]
    together = respond(policy, requests, WRITING, tmp_path / "a", quiet(), "policy")
    for k, z in enumerate(latents):
        alone = respond(policy, [r for r in requests if r.latent == z], WRITING, tmp_path / "b", quiet(), "policy")
        assert alone == together[k::3]
    assert all(len({r.text for r in together[i : i + 3]}) == 3 for i in range(0, 15, 3))


def test_no_latent_is_the_base_model(policy: LanguageModel, base: LanguageModel, tmp_path: Path) -> None:
    assert respond(policy, REQUESTS, WRITING, tmp_path / "a", quiet(), "x") == respond(
        base, REQUESTS, WRITING, tmp_path / "b", quiet(), "x"
    )


def test_virtual_tokens_in_a_prompt_are_refused(base: LanguageModel) -> None:
    with pytest.raises(UserError, match="prompt: contains a virtual token"):
        base.render((Message("user", "Say <|latent-0-0|>."),))
