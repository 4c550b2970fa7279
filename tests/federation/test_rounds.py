"""The round loop: the stack equals the loop, and a result depends on the seed only."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedvpa.evaluation.experiment import prepare
from fedvpa.federation import rounds
from fedvpa.federation.rounds import TrainingState
from fedvpa.methods.base import Upload, draw_noise, drop_features
from fedvpa.preferences.seeding import generator
from toy import method_of, preferences, settings, world


def trained(engine: str = "vectorized", name: str = "fedvpa-gp", ragged: bool = True, **overrides: Any) -> tuple:
    """A trained state and the predictor's scores on the unseen users."""
    everything = {"method__prior_start": 0.25, "method__ortho_start": 0.25, "model__feature_dropout": 0.3}
    config = settings(federation__engine=engine, **everything | overrides)
    prepared = world(config, ragged=ragged)
    method = method_of(prepared, name)
    state = rounds.train(method, config, prepared.clients)
    panel, predictor = prepared.panels["unseen"], method.predictor(state.server, prepared.pool)
    how = predictor.inferences[-2] if len(predictor.inferences) > 1 else predictor.inferences[0]
    p = predictor.predict(predictor.infer(panel.context(4), how, panel.groups), panel.query)
    return state, torch.logit(p)


def assert_equal(one: TrainingState, two: TrainingState, tolerance: float = 0.0) -> None:
    """All tensors of two states agree to `tolerance`; exactly at 0."""
    left, right = tensors(one), tensors(two)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.shape == right[name].shape, name
        apart = (value.double() - right[name].double()).abs().max() if value.numel() else torch.zeros(())
        assert apart <= tolerance, f"{name}: {apart:.2e}"


def tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    server = {k: v for k, v in vars(state.server).items() if isinstance(v, torch.Tensor)}
    return {**server, **state.server.theta, **{f"o.{k}": v for k, v in state.optimizer.items()}, **state.private}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("fedvpa-gp", {}),
        ("fedvpa-gp", {"federation__batch_pairs": 4}),
        (
            "fedvpa-gp",
            {"federation__batch_pairs": 4, "federation__vary_context": False, "federation__server_optimizer": "adam"},
        ),
        ("fedvpa-gp", {"model__feature_dropout": 0.0, "federation__server_optimizer": "adam"}),
        ("fedvpa-gp", {"model__pooling": "attention", "model__odd_encoder": False, "method__kl": "bound"}),
        ("fedvpa-gp", {"model__pooling": "mean", "method__ortho": "paper", "method__kl": "moment"}),
        ("fedvpa-gp", {"model__residual": "bias", "method__prior_weights": "samples"}),
        ("fedvpa-gp", {"federation__local_optimizer": "sgd", "federation__learning_rate": 0.1}),
        ("fedvpl", {}),
        ("fedvpl+prior", {}),
        ("fedvpl+ortho", {}),
        ("fedbt", {}),
        ("fedbt", {"federation__batch_pairs": 4}),
        ("vmtl", {}),
        ("fedvpa-gp+labels", {}),
        ("fedbiscuit", {"method__regroup_every": 1}),
        ("fedbiscuit", {"federation__server_optimizer": "adam", "federation__batch_pairs": 4}),
        ("fedpdpo", {}),
        ("gumbel-mpnn", {}),
        ("gumbel-mpnn", {"method__prior_components": 3}),
        (
            "fedpdpo",
            {"federation__local_optimizer": "sgd", "federation__learning_rate": 0.1, "federation__batch_pairs": 4},
        ),
    ],
)
def test_vectorised_engine_equals_the_loop(name: str, overrides: dict[str, Any]) -> None:
    stacked, scores = trained("vectorized", name, **overrides)
    looped, expected = trained("loop", name, **overrides)
    assert stacked.server.round == 4
    assert_equal(stacked, looped, 1e-9)
    torch.testing.assert_close(scores, expected, atol=1e-9, rtol=0)
    # The comparison is not one of two untouched states.
    config = settings(**overrides)
    untouched = rounds.start(method_of(world(config), name), config, 6).server.theta
    assert any((untouched[k] - v).abs().max() > 1e-4 for k, v in stacked.server.theta.items())


def test_vectorised_scores_equal_the_loops_in_single_precision() -> None:
    overrides = {"federation__dtype": "float32", "federation__local_steps": 10, "federation__rounds": 6}
    stacked, scores = trained("vectorized", **overrides)
    looped, expected = trained("loop", **overrides)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=0)
    assert (stacked.server.labels == looped.server.labels).all()


@pytest.mark.parametrize("per_stack", [1, 2, 3])
def test_the_size_of_a_stack_does_not_matter(per_stack: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, _ = trained()
    size = 4 * sum(t.numel() * t.element_size() for t in reference.server.theta.values())
    monkeypatch.setattr(rounds, "STACK_BYTES", per_stack * size)
    assert rounds.stack_size(reference.server.theta, "vectorized", False) == per_stack
    assert_equal(trained()[0], reference, 1e-9)


def test_stack_sizes_of_the_engines() -> None:
    theta = {"w": torch.zeros(1024, 1024)}
    assert rounds.stack_size(theta, "loop", False) == 1
    assert rounds.stack_size(theta, "loop", True) > 10**6
    assert rounds.stack_size({"w": torch.zeros(2**26)}, "vectorized", False) == 1


@pytest.mark.parametrize("engine", ["vectorized", "loop"])
def test_processing_order_does_not_change_a_bit(engine: str) -> None:
    config = settings(federation__engine=engine)
    prepared = world(config, ragged=True)
    method = method_of(prepared)
    state = rounds.start(method, config, len(prepared.clients))
    ids = torch.tensor([0, 2, 3, 5])
    reference, private = rounds.run_clients(method, config, prepared.clients, state, ids)
    for order in ([3, 1, 0, 2], [2, 3, 1, 0]):
        upload, rows = rounds.run_clients(method, config, prepared.clients, state, ids[order])
        _assert_same_upload(upload, reference)
        assert (rows["log_pi"] == private["log_pi"]).all()
    untouched = torch.tensor([1, 4])
    assert (private["log_pi"][untouched] == state.private["log_pi"][untouched]).all()


def _assert_same_upload(one: Upload, two: Upload) -> None:
    assert one.ids.tolist() == two.ids.tolist()
    assert all((one.theta[k] == v).all() for k, v in two.theta.items())
    assert (one.means == two.means).all()
    assert (one.counts == two.counts).all()


@pytest.mark.parametrize("engine", ["vectorized", "loop"])
@pytest.mark.parametrize("name", ["fedvpa-gp", "fedbt", "vmtl", "fedbiscuit", "fedpdpo"])
def test_same_seed_same_bits_and_another_seed_another_result(engine: str, name: str) -> None:
    one, scores = trained(engine, name, federation__dtype="float32")
    again, same = trained(engine, name, federation__dtype="float32")
    assert_equal(one, again)
    assert (scores == same).all()
    other, _ = trained(engine, name, federation__dtype="float32", seed=1)
    matrices = [k for k, v in one.server.theta.items() if v.dim() == 2]
    assert matrices
    assert all((one.server.theta[k] != other.server.theta[k]).any() for k in matrices)


def test_going_on_from_a_state_gives_the_same_bits() -> None:
    config = settings(federation__server_optimizer="momentum")
    prepared = world(config, ragged=True)
    method = method_of(prepared)
    states: list[TrainingState] = []
    rounds.train(method, config, prepared.clients, callback=lambda r, s: states.append(s))
    resumed = rounds.train(method, config, prepared.clients, states[1])
    assert_equal(resumed, states[-1])
    assert_equal(rounds.train(method, config, prepared.clients, states[-1]), states[-1])


def test_each_round_reports_what_it_cost() -> None:
    config = settings()
    prepared = world(config)
    method = method_of(prepared)
    reports: list[rounds.RoundReport] = []
    state = rounds.train(method, config, prepared.clients, callback=lambda r, s: reports.append(r))
    assert [r.round for r in reports] == [1, 2, 3, 4]
    theta = sum(v.numel() for v in state.server.theta.values()) * 8
    for r in reports:
        assert set(r.metrics) == set(method.metric_names)
        assert r.bytes_up == theta + 2 * 4 * 8 + 8 + 4 * len(method.metric_names)
        assert r.seconds > 0
    assert reports[0].bytes_down == theta + 8 + 4 * 2
    assert reports[-1].bytes_down > reports[0].bytes_down


def test_sampled_clients_are_distinct_sorted_and_change_from_round_to_round() -> None:
    config = settings()
    drawn = [rounds.sample_clients(config, 6, r) for r in range(20)]
    for ids in drawn:
        assert len(ids) == 4
        assert (ids.diff() > 0).all()
        assert ids.max() < 6
    assert len({tuple(ids.tolist()) for ids in drawn}) > 5
    assert torch.cat(drawn).unique().tolist() == list(range(6))
    assert len(rounds.sample_clients(config, 2, 0)) == 2


def test_batches_are_padded_and_masked() -> None:
    prepared = world(settings(), ragged=True)
    data, clients = prepared.clients, prepared.data.clients["seen"]
    assert data.counts.tolist() == [10, 7, 4, 2, 10, 7]
    batch = data.batch(torch.tensor([1, 3]))
    assert batch.y.shape == (2, 7)
    assert batch.counts.tolist() == [7, 2]
    assert (batch.y[1, 2:] == 0).all()
    assert batch.y[0].tolist() == clients[1].train.y.tolist()
    index = clients[3].train.index
    assert (batch.x[1, :2] == prepared.pool.x[index, 0]).all()
    assert (batch.x[1, 7:9] == prepared.pool.x[index, 1]).all()
    part = batch.take(torch.tensor([[6, 0], [1, 0]]))
    assert (part.x[0, [0, 2]] == batch.x[0, [6, 13]]).all()
    assert (part.y[1] == batch.y[1, [1, 0]]).all()


def test_noise_belongs_to_the_client_and_ignores_the_padding() -> None:
    prepared = world(settings(), ragged=True)
    method = method_of(prepared)
    spec = method.noise_spec()
    narrow, wide = (draw_noise(spec, 4, width, generator(0, "noise")) for width in (4, 9))
    assert (wide.rank[..., :4] == narrow.rank).all()
    assert (wide.rank[..., 4:] == torch.arange(4, 9)).all()
    assert (wide.subset[..., :4] == narrow.subset).all()
    assert not wide.subset[..., 4:].any()
    assert (wide.normal == narrow.normal).all()
    sizes = narrow.subset.sum(-1)
    assert sizes.min() >= 1
    assert sizes.max() <= 3  # one pair is always left over
    assert (narrow.rank.sort(-1).values == torch.arange(4)).all()
    data = prepared.clients
    alone = rounds.round_noise(method, prepared.config, data, torch.tensor([3]), 2)
    among = rounds.round_noise(method, prepared.config, data, torch.tensor([0, 3, 4]), 2)
    assert (among.gumbel[1] == alone.gumbel[0]).all()
    assert (among.rank[1, :, :2] == alone.rank[0]).all()


def test_dropped_features_are_scaled_up_and_the_same_for_all_pairs_of_a_client() -> None:
    prepared = world(settings(), ragged=True)
    batch = prepared.clients.batch(torch.tensor([0, 1]))
    keep = torch.tensor([[True, False, True, False, True, False], [True] * 6])
    found = drop_features(batch, keep)
    assert (found.x[0, :, 1::2] == 0).all()
    torch.testing.assert_close(found.x[0, :, ::2], 2 * batch.x[0, :, ::2])
    assert (found.x[1] == batch.x[1]).all()
    assert drop_features(batch, keep[:, :0]) is batch
    spec = replace(method_of(prepared).noise_spec(), dropout=0.3, steps=2000)
    keep = draw_noise(spec, 5, 5, generator(0, "keep")).keep
    assert keep.shape == (1, 2000, 6)
    assert abs(float(keep.double().mean()) - 0.7) < 4 * (0.21 / keep.numel()) ** 0.5


def test_base_choice_logits_are_trained_on_and_summed_up_in_alpha() -> None:
    config = settings(federation__learning_rate=0.01)
    data, features = preferences(config, groups=1)
    useful = data.group_labels[0].float() * 2
    features = dataclasses.replace(features, base_logit=useful)
    prepared = prepare(config, data, features)
    for name in ("fedvpa-gp", "fedbt"):
        state = rounds.train(method_of(prepared, name), config, prepared.clients)
        assert state.server.theta["selector.alpha"] > 0


def test_the_servers_rate_falls_to_nothing_at_the_end() -> None:
    config = settings(federation__rounds=10, federation__server_decay=0.4, federation__server_optimizer="adam")
    rates = [rounds.server_optimizer(config, r).learning_rate for r in range(10)]
    full = config.federation.server_learning_rate
    assert rates[:6] == [full] * 6
    assert rates[6:] == pytest.approx([full * left for left in (1.0, 0.75, 0.5, 0.25)])


def test_dropped_features_take_no_part_and_keep_the_mean_scale() -> None:
    prepared = world(settings())
    batch = prepared.clients.batch(torch.arange(2))
    keep = torch.zeros(2, batch.x.shape[-1], dtype=torch.bool)
    keep[:, 1] = True
    dropped = drop_features(batch, keep)
    assert dropped.x[..., 0].eq(0).all()
    torch.testing.assert_close(dropped.x[..., 1], batch.x[..., 1] * batch.x.shape[-1])
    assert drop_features(batch, keep[:, :0]) is batch


def test_log_pi_learns_whatever_beta_is() -> None:
    """Its step follows the KL's gradient, so the weights move alike under a large and a small beta."""
    moved = []
    for beta in (0.1, 0.001):
        config = settings(
            method__beta=beta,
            method__beta_warmup=1.0,
            method__prior_start=0.0,
            federation__local_optimizer="sgd",
            federation__learning_rate=1e-6,
            federation__rounds=3,
        )
        prepared = world(config)
        state = rounds.train(method_of(prepared, "fedvpl+prior"), config, prepared.clients)
        moved.append(state.private["log_pi"])
    assert moved[0].abs().max() > 1e-3
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-2, atol=1e-4)


def test_without_faults_and_defence_a_round_is_train_average_update() -> None:
    """Not a bit differs from the plain sequence, and nothing of the options that are off is kept."""
    config = settings(method__prior_start=0.25, method__ortho_start=0.25, federation__server_optimizer="adam")
    prepared = world(config)
    method = method_of(prepared)
    state = plain = rounds.start(method, config, len(prepared.clients))
    for round in range(config.federation.rounds):
        state, report = rounds.one_round(method, config, prepared.clients, state)
        ids = rounds.sample_clients(config, len(prepared.clients), round)
        upload, private = rounds.run_clients(method, config, prepared.clients, plain, ids)
        optimizer = rounds.server_optimizer(config, round)
        theta, moments = rounds.server_step(optimizer, plain.server.theta, upload, plain.optimizer)
        server = method.server_update(plain.server, upload, theta, generator(config.seed, "server", round))
        plain = TrainingState(server, moments, private)
        assert report.faults == report.rejected == {}
    assert_equal(state, plain)
    assert state.server.extra == {}
    assert state.faults == {}
    assert state.private["log_pi"].shape == (6, 6)
