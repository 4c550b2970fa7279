"""LoRe, MRM and PAL: what they have in common, and a planted case for each whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedvpa.evaluation.experiment import Prepared, run_method
from fedvpa.federation import rounds
from fedvpa.federation.aggregate import weighted_change
from fedvpa.methods.base import Judged, Judging
from fedvpa.methods.fedvpa_laplace import observations
from fedvpa.methods.lore import DECAY
from toy import DIM, method_of, settings, world
from toy_people import people_world

NAMES = ["lore", "mrm", "pal"]
KINDS = {"pairs": None, "votes": ("vote",), "mixed": ("choice", "vote", "rating")}
IDS = torch.tensor([0, 1, 2, 4])
LEARNABLE: dict[str, Any] = {
    "federation__clients": 40,
    "federation__sampled_clients": 20,
    "federation__unseen_clients": 20,
    "federation__rounds": 60,
    "federation__server_optimizer": "adam",
    "federation__server_learning_rate": 0.02,
    "federation__dtype": "float32",
    "data__pairs_per_client": 16,
    "method__bases": 2,
    "method__ideal_points": 2,
    "method__ridge": 0.3,
    "method__inner_rate": 1.0,
}


def small(kinds: str, **overrides: Any) -> Prepared:
    config, given = settings(**overrides), KINDS[kinds]
    return world(config, ragged=True) if given is None else people_world(config, kinds=given, ragged=True)


def unseen(run: Any) -> dict[int, dict[str, Any]]:
    return {r["context_size"]: r for r in run.rows if r["population"] == "unseen" and r["default"]}


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_cohorts_step_is_the_clients_mean_step(name: str, kinds: str) -> None:
    prepared = small(kinds)
    method = method_of(prepared, name)
    assert isinstance(method, Judging)
    state = rounds.start(method, prepared.config, len(prepared.clients)).server
    download, batch = method.broadcast(state), prepared.clients.judgements.batch(IDS)
    noise = rounds.round_noise(method, prepared.config, prepared.clients, IDS, 0)
    each, at_once = method.client_update(download, {}, batch, noise)[0], method.cohort_update(download, batch, noise)
    one, two = weighted_change(state.theta, each), weighted_change(state.theta, at_once)
    assert all(v.abs().max() > 0 for k, v in one.items() if k not in ("start", "shares", "features.bias"))
    for k in one:
        torch.testing.assert_close(one[k], two[k], atol=1e-6, rtol=1e-4)  # Newton ends a little before the optimum


@pytest.mark.parametrize("name", NAMES)
def test_both_engines_agree(name: str) -> None:
    prepared = small("votes")
    method, config = method_of(prepared, name), prepared.config
    loop = config.model_copy(update={"federation": config.federation.model_copy(update={"engine": "loop"})})
    one, two = (rounds.train(method, c, prepared.clients) for c in (config, loop))
    assert one.private == two.private == {}  # people are fitted anew
    for k, v in one.server.theta.items():
        torch.testing.assert_close(v, two.server.theta[k], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_step_is_the_gradient_of_the_loss(name: str) -> None:
    """Against differences; mrm's loss is after its gradient steps, the others' under the people fitted before it."""
    prepared = small("mixed")
    method = method_of(prepared, name)
    method.dropout = 0.0
    g = torch.Generator().manual_seed(2)
    theta = {k: torch.randn(v.shape, generator=g).double() / 2 for k, v in method.init_server(g).theta.items()}
    batch = prepared.clients.judgements.batch(IDS)
    weight = batch.counts / batch.counts.sum()

    def seen(now: Any) -> Any:
        return observations(*method.project(now, batch.items), Judged(*batch[2:7]))

    fitted = method.person(theta, seen(theta)).detach()

    def loss(now: Any) -> float:
        if name == "mrm":
            return float((weight * method.loss(now, seen(now), seen(now), batch, 0)).sum())
        shift = 0.0
        if name == "pal":  # the shares that a person's weights start from move with t
            own = fitted[:, :-1].log() - theta["shares"]
            shift = (now["shares"] + own).softmax(-1) - fitted[:, :-1]
        decay = DECAY / 2 * sum(float((v**2).sum()) for v in now.values()) if name == "lore" else 0.0
        z = torch.cat([fitted[:, :-1] + shift, fitted[:, -1:]], -1)
        at = seen(now)
        score = at.offset + (at.slope @ z.unsqueeze(-1)).squeeze(-1)
        rating = 0.5 * (at.y - score) ** 2 + 0.5 * torch.log(torch.tensor(2 * torch.pi))
        choice = torch.nn.functional.softplus(-at.y * score)
        return decay + float(
            (weight * (torch.where(at.gaussian, rating, choice) * at.weight).sum(-1) / batch.counts).sum()
        )

    download = replace(method.broadcast(method.init_server(g)), theta=theta)
    step = method.cohort_update(download, batch, None).theta
    for k, v in theta.items():
        direction = torch.randn(v.shape, generator=g).double()
        up, down = (loss({**theta, k: v + e * direction}) for e in (1e-5, -1e-5))
        moved = float(((step[k][0] - v) * direction).sum())
        assert moved == pytest.approx(-(up - down) / 2e-5, abs=1e-6, rel=1e-4), k


def test_lore_finds_the_planted_basis_and_each_persons_preferences() -> None:
    """Four groups want +-x0 or +-x1: two of six directions say all, and the average person wants nothing."""
    prepared = people_world(settings(**{**LEARNABLE, "federation__rounds": 200}), groups=4)
    run = run_method(prepared, "lore")
    planted = torch.eye(DIM)[:2]
    found = torch.linalg.qr(run.training.server.theta["basis.weight"].T)[0]
    assert torch.linalg.svdvals(planted @ found).min() > 0.9  # cosines of the angles between the two planes
    rows = unseen(run)
    assert 0.4 < rows[0]["accuracy"] < 0.6
    assert rows[16]["accuracy"] > 0.85


def test_mrm_turns_to_a_person_where_the_average_model_is_a_coin() -> None:
    rows = unseen(run_method(people_world(settings(**LEARNABLE)), "mrm"))
    assert 0.4 < rows[0]["accuracy"] < 0.6
    assert rows[4]["accuracy"] > 0.8
    assert rows[16]["accuracy"] > 0.9
    assert rows[16]["flip_rate"] > 0.8


def test_pal_finds_the_planted_prototypes() -> None:
    """Two groups want opposite things: each person's weights name its group's prototype."""
    prepared = people_world(settings(**LEARNABLE))
    run = run_method(prepared, "pal")
    panel = prepared.panels["unseen"]
    users = run.predictor.infer(panel.judgements(32))
    torch.testing.assert_close(users[:, :-1].sum(-1), torch.ones(len(users)))
    chosen = users[:, :-1].argmax(-1)
    assert len({(g, k) for g, k in zip(panel.groups.tolist(), chosen.tolist(), strict=True)}) == 2
    assert users[:, :-1].amax(-1).mean() > 0.8
    rows = unseen(run)
    assert 0.4 < rows[0]["accuracy"] < 0.6
    assert rows[16]["accuracy"] > 0.85
