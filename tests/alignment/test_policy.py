"""A policy in use: whom it answers for, files, and the selector's choice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fedvpa import UserError
from fedvpa.alignment.candidates import Request, uniforms
from fedvpa.alignment.language import Response
from fedvpa.alignment.policy import PersonalizedPolicy
from fedvpa.alignment.sampling import Sampling
from fedvpa.apps.blends import parse_blend
from fedvpa.apps.generating import open_policy
from fedvpa.preferences.schema import as_prompt
from tiny_policy import save_random_policy

PROMPT = "What is a fox?"


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_policy(finished, tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def policy(folder: Path) -> PersonalizedPolicy:
    return PersonalizedPolicy.from_pretrained(folder, device="cpu")


def test_whom_it_answers_for(policy: PersonalizedPolicy) -> None:
    zero, one, nobody = (policy.generate(PROMPT, **w) for w in ({"prototype": 0}, {"prototype": 1}, {}))  # type: ignore[arg-type]
    assert len({zero, one, nobody}) == 3
    assert policy.generate(PROMPT, prototype=0) == zero
    assert policy.generate(PROMPT, blend={0: 1.0}) == zero
    assert policy.generate(PROMPT, policy.selector.blend({1: 1.0})) == one
    assert policy.generate(PROMPT, blend={0: 0.5, 1: 0.5}) not in (zero, one)
    assert policy.generate(PROMPT, prototype=0, seed=1) != zero
    assert policy.generate([{"role": "user", "content": PROMPT}], prototype=0) == zero
    short = policy.generate(PROMPT, prototype=0, max_new_tokens=4)
    assert len(short) < len(zero)


def test_the_base_model_is_still_there(policy: PersonalizedPolicy, finished: Path) -> None:
    untrained = PersonalizedPolicy.untrained(finished, device="cpu", max_new_tokens=16)
    plain = untrained.generate(PROMPT, temperature=0)
    assert policy.generate(PROMPT, prototype=0, base=True, temperature=0) == plain
    assert policy.generate(PROMPT, prototype=0, temperature=0) != plain


def test_best_of_is_the_selectors_choice(policy: PersonalizedPolicy) -> None:
    prompt, user = as_prompt(PROMPT), policy.selector.blend({0: 1.0})
    with policy.writer(base=True) as model:
        u = torch.stack([uniforms(0, 16, Request(prompt, k)) for k in range(4)])
        written = model.write(model.encode([prompt] * 4), None, u, Sampling())
    ranked = policy.selector.rank(PROMPT, [r.text for r in written], user)
    assert policy.generate(PROMPT, user, base=True, best_of=4) == ranked[0][0]
    empty = Response("", 0, False)
    assert policy.choose(prompt, [empty, written[1]], user) == written[1]
    assert policy.choose(prompt, [empty], user) == empty


def test_mistakes(policy: PersonalizedPolicy, folder: Path, finished: Path, tmp_path: Path) -> None:
    user = policy.selector.blend({0: 1.0})
    with pytest.raises(UserError, match="exclude each other"):
        policy.generate(PROMPT, user, prototype=0)
    with pytest.raises(UserError, match="inferred with another model"):
        policy.generate(PROMPT, user.model_copy(update={"model_hash": "x"}))
    with pytest.raises(UserError, match="no such folder"):
        PersonalizedPolicy.from_pretrained(tmp_path / "none")
    with pytest.raises(UserError, match="no policy here"):
        PersonalizedPolicy.from_pretrained(tmp_path)
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="damaged"):
        PersonalizedPolicy.from_pretrained(broken)
    with pytest.raises(UserError, match="only a choice can be personal"):
        open_policy(finished, base=False, best_of=1)
    assert open_policy(finished, base=False, best_of=2).info.conditioned is None
    assert parse_blend("0:0.3,1:0.7") == {0: 0.3, 1: 0.7}
    for text in ("0", "0:x", "0:0.5,0:0.5", ""):
        with pytest.raises(UserError, match="not understood"):
            parse_blend(text)


def test_more_random_numbers_begin_alike() -> None:
    request = Request(as_prompt(PROMPT))
    torch.testing.assert_close(uniforms(0, 40, request)[:7], uniforms(0, 7, request))
    assert not torch.equal(uniforms(0, 7, request), uniforms(0, 7, request._replace(number=1)))
