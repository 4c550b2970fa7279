"""Attacks find what is there, find nothing where there is nothing, and make the round's uploads again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedvpa.evaluation import attacks
from fedvpa.evaluation.attacks import Outcome, Watch, interval, nearest_group, run_attacks, thresholded
from fedvpa.evaluation.experiment import run_method
from fedvpa.federation import privacy, rounds
from fedvpa.federation.rounds import run_clients, sample_clients
from toy import method_of, settings, world


def normals(n: int, shift: float, seed: int, each: int = 1) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return list(torch.randn(n, each, generator=g) + shift)


@given(st.integers(0, 1000))
@hypothesis_settings(max_examples=10, deadline=None)
def test_a_threshold_is_not_judged_where_it_was_fitted(seed: int) -> None:
    none = Outcome("m", "v", "s", thresholded(normals(300, 0, seed), normals(300, 0, seed + 5000), seed))
    assert abs(none.advantage) < 0.2
    all_of_it = Outcome("m", "v", "s", thresholded(normals(20, 50, seed), normals(20, 0, seed + 5000), seed))
    assert all_of_it.advantage == 1.0


def test_the_advantage_of_a_shift_is_the_textbook_value() -> None:
    """Two normals one deviation apart: TPR - FPR at the middle is 2 Phi(1/2) - 1 = 0.383."""
    found = thresholded(normals(400, 1, 0, each=20), normals(400, 0, 1, each=20), 0)
    assert Outcome("m", "v", "s", found).advantage == pytest.approx(0.383, abs=0.03)


def test_the_best_threshold_of_separate_scores_lies_between_them() -> None:
    cut = attacks.best_threshold(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]))
    assert cut == pytest.approx(2.5)


def test_groups_are_found_from_directions_and_not_from_noise() -> None:
    g = torch.Generator().manual_seed(0)
    groups = torch.arange(60) % 3
    centres = 4 * torch.eye(3, 8)
    found = Outcome("g", "v", "s", nearest_group(centres[groups] + torch.randn(60, 8, generator=g), groups))
    assert found.advantage > 0.9
    assert [len(h) for h in found.hits] == [20, 20, 20]
    chance = Outcome("g", "v", "s", nearest_group(torch.randn(600, 8, generator=g), torch.arange(600) % 3))
    assert abs(chance.advantage) < 0.15


def test_the_interval_holds_the_mean_and_narrows_with_more_candidates() -> None:
    def one(n: int) -> Outcome:
        return Outcome("m", "v", "s", (torch.arange(n).double() % 2, torch.ones(n).double()))

    few, many = interval([one(10)] * 3), interval([one(1000)] * 3)
    assert few[0] == many[0] == pytest.approx(0.5)
    assert few[1] <= few[0] <= few[2]
    assert many[2] - many[1] < few[2] - few[1]


def attacked(name: str = "fedvpa-gp", **overrides: Any) -> tuple[dict[tuple[str, str, str], float], Any]:
    tree = {"federation__clients": 24, "federation__unseen_clients": 24, "federation__sampled_clients": 8}
    tree |= {"federation__rounds": 12, "federation__local_steps": 20, "federation__learning_rate": 3e-2}
    prepared = world(settings(**tree, method__prior_start=0.25, method__ortho_start=0.25, **overrides))
    watch = Watch(12)
    run = run_method(prepared, name, on_round=watch)
    found = run_attacks(run.method, prepared, watch.states)
    return {(o.attack, o.view, o.signal): o.advantage for o in found}, (prepared, run, watch)


def test_unprotected_messages_tell_pairs_and_groups_and_noise_hides_them() -> None:
    bare, _ = attacked()
    assert bare["membership", "server", "theta"] > 0.15
    assert bare["membership", "sum", "theta"] < bare["membership", "server", "theta"]
    assert bare["group", "server", "posterior"] > 0.9
    assert bare["group", "peer", "posterior"] > 0.5
    noise = {"privacy__clip": 0.1, "privacy__noise": 20.0, "privacy__moments_clip": 1.0, "privacy__moments_noise": 50.0}
    noised, _ = attacked(privacy__posterior_clip=1.0, privacy__posterior_noise=20.0, **noise)
    assert noised.keys() == bare.keys()
    assert noised["group", "server", "posterior"] < 0.5
    assert noised["group", "peer", "posterior"] < 0.3
    assert noised["membership", "server", "theta"] < 0.15
    assert noised["membership", "server", "moments"] < bare["membership", "server", "moments"]
    assert (
        noised["group", "server", "theta"] > 0.5
    )  # clipping alone hides nothing from a server without secure aggregation


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_peer_recognises_the_very_statistics_also_behind_a_clip(clip: float | None) -> None:
    tree = {"federation__clients": 24, "federation__unseen_clients": 24, "privacy__posterior_clip": clip}
    prepared = world(settings(**tree))
    method = method_of(prepared)
    state = rounds.start(method, prepared.config, 24)
    sent = attacks._statistics(method, prepared, state.server, prepared.data.clients["seen"])
    means, variances = sent if clip is None else privacy.clipped_posteriors(*sent, clip)
    server = replace(state.server, means=means, variances=variances, counts=torch.ones(24, dtype=torch.int64))
    found = attacks._clients_from_prior(method, prepared, replace(state, server=server))
    assert found.advantage > 0.9


def test_the_uploads_that_are_attacked_are_those_that_trained() -> None:
    _, (prepared, run, watch) = attacked()
    state = watch.states[0].server
    assert [s.server.round for s in watch.states] == [2, 5, 8, 11]
    ids = sample_clients(prepared.config, 24, 11)
    again, _ = run_clients(run.method, prepared.config, prepared.clients, watch.states[-1], ids)
    assert torch.equal(run.training.server.means[ids], again.means)
    assert not torch.equal(state.means, run.training.server.means)


def test_methods_without_posteriors_are_attacked_by_what_they_send() -> None:
    found, _ = attacked("fedbt")
    assert not any(signal == "posterior" for *_, signal in found)
    assert ("group", "server", "theta") in found
    vpl, _ = attacked("fedvpl")  # posteriors go to the server, and no prior to the peers
    assert ("group", "server", "posterior") in vpl
    assert ("membership", "peer", "posterior") not in vpl
