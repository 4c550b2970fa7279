"""Labels come from the selector, the same candidates under every latent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedvpa import Selector, UserError
from fedvpa.alignment import labelling
from fedvpa.alignment.config import LabelsConfig
from fedvpa.alignment.labelling import Latent, inferred, label, labelling_latents, point_of
from fedvpa.alignment.language import Response
from fedvpa.preferences.schema import Pair, as_prompt
from fedvpa.preferences.sources import load_preferences

PROMPTS = [as_prompt(f"Question {i} of many?") for i in range(6)]


def answers(*texts: str) -> list[Response]:
    return [Response(t, len(t), len(t) > 20) for t in texts]


CANDIDATES = [
    answers(f"No {i}.", f"Answer {i}, at some length.", f"Answer {i}, at some length and with care.", "")
    for i in range(6)
]


class LongerOrShorter:
    """A selector whose user's mean says how much it likes long answers."""

    def preferences(self, pairs: list[Pair], users: list[Any]) -> torch.Tensor:
        d = torch.tensor([float(len(p.a) - len(p.b)) for p in pairs])
        return torch.sigmoid(torch.tensor([u.mean[0] for u in users]).unsqueeze(1) * d)


def users(*liking: float) -> list[Latent]:
    from fedvpa import User

    return [Latent(f"user {x}", User(mean=[x], log_var=[0.0], pairs=0, model_hash="")) for x in liking]


def test_a_couple_is_trained_on_both_ways_under_latents_that_contradict_each_other() -> None:
    found = label(LongerOrShorter(), PROMPTS, CANDIDATES, users(1.0, -1.0, 0.5), LabelsConfig(pairs=18))  # type: ignore[arg-type]
    assert (found.couples, found.empty) == (18, 6)
    for x in found.preferences:
        shorter, longer = sorted((x.chosen, x.rejected), key=lambda r: len(r.text))
        assert (x.chosen, x.rejected) == ((shorter, longer) if x.latent == 1 else (longer, shorter))
        assert 0.9 < x.margin <= 1
    both = found.preferences[:12]
    for one, other in zip(both[::2], both[1::2], strict=True):
        assert (one.chosen, one.rejected) == (other.rejected, other.chosen)
        assert 1 in (one.latent, other.latent)
    assert {x.latent for x in found.preferences[12:]} <= {0, 2}  # the one that contradicts them has given its part
    texts = [frozenset((x.prompt, r.text) for r in (x.chosen, x.rejected)) for x in found.preferences]
    assert len(set(texts)) == 6 + len(texts[12:])
    torch.testing.assert_close(found.conflict, torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).double())
    assert found.conflict_share == pytest.approx(2 / 3)
    assert not found.few_conflicts


def test_few_conflicts_are_noticed() -> None:
    found = label(LongerOrShorter(), PROMPTS, CANDIDATES, users(1.0, 2.0), LabelsConfig())  # type: ignore[arg-type]
    assert found.conflict_share == 0
    assert found.few_conflicts
    alone = label(LongerOrShorter(), PROMPTS, CANDIDATES, users(1.0), LabelsConfig())  # type: ignore[arg-type]
    assert alone.conflict_share is None
    assert not alone.few_conflicts


def test_the_surest_couples_come_first_and_every_latent_gives_its_part() -> None:
    varied = [answers("x", "x" * (2 + 3 * i)) for i in range(6)]
    found = label(LongerOrShorter(), PROMPTS, varied, users(0.1, -0.1), LabelsConfig(pairs=4))  # type: ignore[arg-type]
    assert [(x.latent, x.prompt) for x in found.preferences] == [(0, 5), (1, 5), (1, 4), (0, 4)]


def test_couples_that_nobody_contradicts_enter_alone() -> None:
    found = label(LongerOrShorter(), PROMPTS, CANDIDATES, users(0.1, 0.2), LabelsConfig(pairs=6))  # type: ignore[arg-type]
    assert [x.latent for x in found.preferences] == [0, 1] * 3
    assert {x.chosen.text for x in found.preferences} == {
        f"Answer {i}, at some length and with care." for i in range(6)
    }


def test_a_prompt_gives_another_couple_when_all_had_their_turn() -> None:
    four = [answers("a", "bb", "ccc", "dddd") for _ in PROMPTS]
    for n, most in ((6, 1), (12, 2), (1000, 6)):
        found = label(LongerOrShorter(), PROMPTS, four, users(1.0), LabelsConfig(pairs=n))  # type: ignore[arg-type]
        assert [x.prompt for x in found.preferences[:6]] == list(range(6))
        mine = [(x.chosen.text, x.rejected.text) for x in found.preferences if x.prompt == 0]
        assert len(mine) == len(set(mine)) == most
        assert mine[0] == ("dddd", "a")


def test_nothing_to_compare() -> None:
    with pytest.raises(UserError, match="no prompt has two different candidates"):
        label(LongerOrShorter(), PROMPTS[:1], [answers("same", "same", "")], users(1.0), LabelsConfig())  # type: ignore[arg-type]


def test_latents_of_a_run(finished: Path) -> None:
    selector = Selector.from_pretrained(finished)
    data = load_preferences(selector.info.config)
    found = labelling_latents(selector, data, LabelsConfig(users=3), 0)
    names = [x.name for x in found]
    assert names[:2] == ["prototype 0", "prototype 1"]
    assert len(names) == len(selector.centres) + 3
    assert set(names[-3:]) <= {c.client_id for c in data.clients["seen"]}
    assert found[1].z == pytest.approx(selector.centres[1].tolist())
    by_hand = found[-1].user
    weights = torch.tensor(by_hand.weights).unsqueeze(1)
    assert found[-1].z == pytest.approx((weights * torch.tensor(by_hand.particles)).sum(0).tolist(), abs=1e-5)
    # a user under whom the selector predicts as the run measured it
    client = data.clients["unseen"][0]
    (unseen,) = inferred(selector, data, [client], 4)
    assert unseen.user.pairs == 4
    assert point_of(selector.infer_pairs([])) is not None
    pairs = [data.pairs[i] for i in range(5)]
    both = selector.preferences(pairs, [unseen.user, found[0].user])
    torch.testing.assert_close(both[0], selector.prefer_pairs(pairs, unseen.user))
    torch.testing.assert_close(both[1], selector.prefer_pairs(pairs, found[0].user))


def test_features_are_computed_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selector = Selector.from_pretrained(finished)
    calls: list[int] = []
    real = selector.backbone.encode_pairs
    monkeypatch.setattr(
        selector.backbone, "encode_pairs", lambda pairs, *a, **k: calls.append(len(pairs)) or real(pairs, *a, **k)
    )
    latents = [Latent(f"p{k}", selector.blend({k: 1.0})) for k in range(2)]
    labelling.label(selector, PROMPTS, CANDIDATES, latents, LabelsConfig())
    assert calls == [18]


def test_blends_lie_between(finished: Path) -> None:
    selector = Selector.from_pretrained(finished)
    a, b, half = (torch.tensor(selector.blend(w).mean) for w in ({0: 1.0}, {1: 1.0}, {0: 0.5, 1: 0.5}))
    torch.testing.assert_close(half, (a + b) / 2)
    with pytest.raises(UserError, match="no prototype 7"):
        selector.blend({7: 1.0})
    with pytest.raises(UserError, match="sum to 1"):
        selector.blend({0: 0.3, 1: 0.3})
    with pytest.raises(UserError, match="sum to 1"):
        selector.blend({0: -0.5, 1: 1.5})
