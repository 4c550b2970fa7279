"""The honest protocol: nested contexts, hidden query labels, and figures that add up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedvpa.evaluation import protocol
from fedvpa.evaluation.experiment import Prepared
from fedvpa.evaluation.protocol import Panel, make_panel, measure, opposite_users, score_predictions
from fedvpa.federation import rounds
from fedvpa.methods.base import Context
from fedvpa.preferences.schema import LabelledPairs
from toy import method_of, settings, world


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return world(settings(), groups=4, ragged=True)


@pytest.fixture(scope="module")
def predictor(prepared: Prepared) -> Any:
    method = method_of(prepared)
    return method.predictor(rounds.start(method, prepared.config, 6).server, prepared.pool)


class Recorder:
    """A predictor that notes what it is shown and what it answers."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.contexts, self.answers = inner, [], []

    def infer(self, context: Context, how: str, groups: torch.Tensor) -> Any:
        self.contexts.append(context)
        return self.inner.infer(context, how, groups)

    def predict(self, users: Any, index: torch.Tensor) -> torch.Tensor:
        self.answers.append(self.inner.predict(users, index))
        return self.answers[-1]

    def rows(self, users: Any, order: torch.Tensor) -> Any:
        return self.inner.rows(users, order)


def test_contexts_are_nested_real_pairs_with_their_labels(prepared: Prepared) -> None:
    panel, clients = prepared.panels["seen"], prepared.data.clients["seen"]
    largest = panel.context(16)
    for size in (0, 1, 2, 4, 8, 16):
        context = panel.context(size)
        width = context.index.shape[1]
        assert (context.index == largest.index[:, :width]).all()
        for i, client in enumerate(clients):
            rows = context.index[i][context.mask[i]].tolist()
            assert len(rows) == len(set(rows)) == min(size, len(client.train))
            known = dict(zip(client.train.index.tolist(), client.train.y.tolist(), strict=True))
            assert [known[r] for r in rows] == context.y[i][context.mask[i]].tolist()
    exchanged = panel.context(4, exchanged=True)
    assert (exchanged.y == -panel.context(4).y).all()
    assert (exchanged.index == panel.context(4).index).all()


def test_context_and_query_share_no_pair(prepared: Prepared) -> None:
    for panel in prepared.panels.values():
        shown = set(panel.context(16).index[panel.context(16).mask].tolist())
        assert not shown & set(panel.query[panel.query_mask].tolist())


def test_the_same_seed_asks_the_same_and_another_seed_something_else(prepared: Prepared) -> None:
    clients = prepared.data.clients["unseen"]
    one, same, other = (make_panel(prepared.data, clients, seed, prepared.pool) for seed in (0, 0, 1))
    assert (one.order == same.order).all()
    assert (one.order != other.order).any()
    alone = make_panel(prepared.data, clients[2:3], 0, prepared.pool)
    assert (alone.order[0] == one.order[2]).all()


def test_users_without_a_query_are_left_out(prepared: Prepared) -> None:
    clients = list(prepared.data.clients["unseen"])
    clients[1] = replace(clients[1], test=LabelledPairs.of([], []))
    clients[2] = replace(clients[2], test=LabelledPairs(clients[2].test.index[:5], clients[2].test.y[:5]))
    panel = make_panel(prepared.data, clients, 0, prepared.pool)
    assert panel.groups.tolist() == [0, 2, 3]
    assert panel.query_mask.sum(-1).tolist() == [60, 5, 60]


def test_opposite_users_are_of_the_opposite_group() -> None:
    groups = torch.tensor([0, 1, 2, 3, 0, 0, 1, -1])
    found = opposite_users(groups, (1, 0, 3, 2))
    assert groups[found[:7]].tolist() == [1, 0, 3, 2, 1, 1, 0]
    assert found[7] == 7
    assert len({int(found[0]), int(found[4])}) == 2  # in turn, not always the same one
    assert opposite_users(torch.tensor([0, 0]), (1, 0)).tolist() == [0, 1]  # nobody is of the other group


def test_panels_opposites_disagree_on_every_conflicting_pair(prepared: Prepared) -> None:
    panel = prepared.panels["unseen"]
    assert (panel.groups[panel.opposite] == panel.groups ^ 1).all()
    assert (panel.query_y[panel.opposite] == -panel.query_y)[panel.query_mask].all()
    assert panel.conflict[panel.query_mask].all()
    assert (panel.shuffled != torch.arange(4)).all()


@pytest.mark.parametrize("how", ["amortised", "mixture", "refined"])
def test_a_query_label_never_influences_its_posterior_or_prediction(
    prepared: Prepared, predictor: Any, how: str
) -> None:
    panel = prepared.panels["unseen"]
    lied = replace(panel, query_y=-panel.query_y)
    honest, fooled = Recorder(predictor), Recorder(predictor)
    one = measure(honest, panel, 4, how, True).values
    two = measure(fooled, lied, 4, how, True).values
    assert len(honest.answers) == len(fooled.answers) >= 3
    for a, b in zip(honest.answers, fooled.answers, strict=True):
        assert (a == b).all()
    assert one["accuracy"] == pytest.approx(1 - two["accuracy"])
    queries = set(panel.query[panel.query_mask].tolist())
    for context in honest.contexts:
        assert not queries & set(context.index[context.mask].tolist())


def test_scores_by_hand(prepared: Prepared) -> None:
    panel = prepared.panels["seen"]
    mask = panel.query_mask.clone()
    mask[0, 3:] = False
    panel = replace(panel, query_mask=mask, conflict=panel.conflict & mask)
    p = torch.rand(panel.query.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = score_predictions(panel, p)
    users = []
    for i in range(len(p)):
        n = int(mask[i].sum())
        users.append(sum(float((p[i, j] > 0.5) == (panel.query_y[i, j] > 0)) for j in range(n)) / n)
    assert found.values["accuracy"] == pytest.approx(sum(users) / len(users))
    by_group = {g: [u for u, k in zip(users, panel.groups.tolist(), strict=True) if k == g] for g in range(4)}
    means = {f"rule {g}": sum(v) / len(v) for g, v in by_group.items()}
    assert found.values["group_accuracy"] == pytest.approx(means)
    assert found.values["worst_group_accuracy"] == pytest.approx(min(means.values()))
    assert found.values["conflict_accuracy"] == pytest.approx(found.values["accuracy"])  # all pairs are in conflict
    assert found.scores.accuracy == pytest.approx(found.values["accuracy"])
    assert found.scores.weight.sum() == pytest.approx(1)
    assert len(found.scores.weight) == panel.pool_size
    train = torch.tensor([s == "train" for s in prepared.data.split]).numpy()
    assert found.scores.weight[train].sum() == 0


def test_switch_gap_and_shuffle_use_the_others_latents(prepared: Prepared) -> None:
    """A predictor that knows each user's group is right for everybody, and wrong with the opposite's latent."""

    class Knows:
        inferences = ("none",)

        def infer(self, context: Context, how: str, groups: torch.Tensor) -> torch.Tensor:
            return groups

        def predict(self, users: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return (prepared.data.group_labels[users.unsqueeze(-1), index] > 0).double()

        def rows(self, users: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
            return users[order]

    panel = prepared.panels["unseen"]
    values = measure(Knows(), panel, 4, "none", True).values
    assert values["accuracy"] == 1
    assert values["switch_gap"] == 1
    assert values["flip_rate"] == 0  # it does not read the context
    assert values["shuffled_accuracy"] < 0.9
    impersonal = measure(Knows(), panel, 4, "none", False).values
    assert not {"switch_gap", "flip_rate", "shuffled_accuracy"} & set(impersonal)
    assert "flip_rate" not in measure(Knows(), panel, 0, "none", True).values


def test_no_switch_gap_without_groups() -> None:
    blind = world(settings(), known=False)
    method = method_of(blind)
    predictor = method.predictor(rounds.start(method, blind.config, 6).server, blind.pool)
    values = measure(predictor, blind.panels["unseen"], 4, "amortised", True).values
    assert "switch_gap" not in values
    assert values["group_accuracy"] is None
    assert values["worst_group_accuracy"] is None
    assert values["conflict_accuracy"] is None


def test_flip_rate_counts_correct_predictions_only() -> None:
    panel = world(settings()).panels["unseen"]
    y = panel.query_y
    right = torch.where(y > 0, 0.9, 0.1)
    assert protocol.flip_rate(panel, right, 1 - right) == 1
    assert protocol.flip_rate(panel, right, right) == 0
    assert protocol.flip_rate(panel, 1 - right, right) is None
    half = right.clone()
    half[:, ::2] = 1 - half[:, ::2]
    mirrored = 1 - half
    mirrored[:2] = half[:2]
    assert protocol.flip_rate(panel, half, mirrored) == pytest.approx(0.5)


def test_with_odd_experts_amortised_predictions_flip(prepared: Prepared, predictor: Any) -> None:
    panel: Panel = prepared.panels["unseen"]
    assert measure(predictor, panel, 8, "amortised", True).values["flip_rate"] == 1
