"""FedDPO: TRL's loss, a predictor that is antisymmetric, FedAvg of adapters, and clients that leave no trace."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from fedvpa.backbone.pairs import PairTexts
from fedvpa.backbone.tokens import Renderer
from fedvpa.evaluation.experiment import Prepared, run_method
from fedvpa.federation import checkpoint, rounds
from fedvpa.methods.base import stack_theta
from fedvpa.methods.language import learning_rate
from fedvpa.methods.registry import create
from tiny_language import configuration, some_adapter, world


@pytest.fixture(scope="module")
def prepared(experiment: Path) -> Prepared:
    return world(configuration(experiment))


def method_of(prepared: Prepared) -> Any:
    return create(prepared.config.method.name, prepared.setup(prepared.config))


def texts_of(prepared: Prepared) -> PairTexts:
    assert prepared.pool.texts is not None
    return prepared.pool.texts


def trls_loss(
    prepared: Prepared, adapter: dict[str, torch.Tensor], rows: list[int], y: list[int], folder: Path
) -> float:
    """TRL's own DPO loss of these pairs, from their texts, with the adapter merged into a model."""
    config = prepared.config
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(config.backbone.model, dtype=torch.float32) for _ in range(2)
    )
    with torch.no_grad():
        for name in (n for n in adapter if ".lora_A." in n):
            change = config.lora.alpha / config.lora.rank * adapter[name.replace("lora_A", "lora_B")] @ adapter[name]
            policy.model.get_parameter(name.replace(".lora_A", "")).add_(change)
    tokenizer = AutoTokenizer.from_pretrained(config.backbone.model)
    renderer, columns = Renderer(tokenizer), []
    for row, label in zip(rows, y, strict=True):
        pair = prepared.data.pairs[row]
        chosen, rejected = (pair.a, pair.b) if label > 0 else (pair.b, pair.a)
        texts = {"chosen": renderer.space + chosen, "rejected": renderer.space + rejected}
        columns.append({"prompt": renderer.prompt(pair.prompt), **texts})
    arguments = DPOConfig(
        output_dir=str(folder), beta=config.lora.beta, max_length=None, use_cpu=True, bf16=False, report_to=[]
    )
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(columns),
        processing_class=tokenizer,
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model.eval(), batch))


def test_the_loss_is_trls(prepared: Prepared, tmp_path: Path) -> None:
    method, rows, y = method_of(prepared), [0, 1, 2, 3, 4], [1, -1, -1, 1, 1]
    adapter = some_adapter(method.lm, 0.5)
    theta = stack_theta(adapter, 1)
    loss = method._backward(theta, texts_of(prepared).take(rows), torch.tensor(y), torch.zeros(5))
    expected = trls_loss(prepared, adapter, rows, y, tmp_path)
    assert float(loss) == pytest.approx(expected, abs=1e-3)
    assert abs(expected - math.log(2)) > 0.01
    assert all(v.grad is not None for v in theta.values())


def test_small_batches_give_the_same_gradient(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    method, pairs, y = method_of(prepared), texts_of(prepared).take(range(6)), torch.ones(6)
    found = []
    for tokens in (4096, 150):
        monkeypatch.setattr(method.lm, "batch_tokens", tokens)
        theta = stack_theta(some_adapter(method.lm), 1)
        loss = method._backward(theta, pairs, y, torch.zeros(6))
        found.append((loss, {k: v.grad for k, v in theta.items()}, len(pairs.batches(tokens))))
    assert found[1][2] > found[0][2] == 1
    torch.testing.assert_close(found[0][:2], found[1][:2], atol=1e-5, rtol=1e-4)


def test_predictions_turn_over_with_the_responses_and_are_half_before_training(prepared: Prepared) -> None:
    method, pairs = method_of(prepared), texts_of(prepared).take(range(4))
    turned = PairTexts(tuple(pairs.items[i ^ 1] for i in range(8)), tuple(pairs.texts[i ^ 1] for i in range(8)))
    adapter = some_adapter(method.lm)
    torch.testing.assert_close(
        method.all_logits(adapter, turned), -method.all_logits(adapter, pairs), atol=1e-5, rtol=0
    )
    new = method.all_logits(method.initial(torch.Generator().manual_seed(0)), pairs)
    torch.testing.assert_close(new, torch.zeros(4), atol=1e-4, rtol=0)


def test_the_server_averages_adapters_by_numbers_of_pairs(prepared: Prepared) -> None:
    """FedAvg: one round is each client's own training from the same adapter, averaged by hand."""
    method, config, data = method_of(prepared), prepared.config, prepared.clients
    start = rounds.start(method, config, len(data))
    after, report = rounds.one_round(method, config, data, start)
    ids = rounds.sample_clients(config, len(data), 0)
    alone = [rounds.run_clients(method, config, data, start, ids[i : i + 1])[0] for i in reversed(range(len(ids)))]
    weight = torch.tensor([float(u.counts) for u in alone])
    for name, value in after.server.theta.items():
        by_hand = sum(w * u.theta[name][0] for w, u in zip(weight / weight.sum(), alone, strict=True))
        torch.testing.assert_close(value, by_hand, atol=1e-6, rtol=1e-5)
    moved = {k: (v - start.server.theta[k]).abs().max() for k, v in after.server.theta.items()}
    assert min(moved.values()) > 0
    adapter_bytes = 4 * sum(v.numel() for v in after.server.theta.values())
    assert report.bytes_down == adapter_bytes
    assert report.bytes_up == adapter_bytes + 8 + 4 * len(method.metric_names)


def test_a_run_that_was_interrupted_ends_the_same(prepared: Prepared, tmp_path: Path) -> None:
    method, config, data = method_of(prepared), prepared.config, prepared.clients

    def kill(report: rounds.RoundReport, state: rounds.TrainingState) -> None:
        checkpoint.save(tmp_path, state, {})
        if report.round == 2:
            raise KeyboardInterrupt

    whole = rounds.train(method, config, data)
    with pytest.raises(KeyboardInterrupt):
        rounds.train(method, config, data, callback=kill)
    found = checkpoint.load(tmp_path)
    assert found is not None
    again = rounds.train(method_of(prepared), config, data, found[0])
    assert again.server.round == whole.server.round == 3
    assert all(torch.equal(again.server.theta[k], v) for k, v in whole.server.theta.items())


def test_it_learns_what_all_users_want(experiment: Path, tmp_path: Path) -> None:
    """Users who agree: the accuracy on pairs of other users rises from a coin's to nearly all."""
    lines = [line for line in (experiment.parent / "data.jsonl").read_text().splitlines() if '"longer"' in line]
    (tmp_path / "agreed.jsonl").write_text("\n".join(lines) + "\n")
    sizes = {"clients": 4, "unseen_clients": 1, "validation_clients": 1, "sampled_clients": 2}
    config = configuration(
        experiment,
        data__path=str(tmp_path / "agreed.jsonl"),
        lora__learning_rate=0.02,
        lora__rounds=4,
        lora__dropout=0.0,
        **{f"federation__{k}": v for k, v in sizes.items()},
    )
    run = run_method(world(config), "feddpo")
    assert {r["population"]: r["context_size"] for r in run.rows} == {"seen": None, "unseen": None}
    accuracy = {r["population"]: r["accuracy"] for r in run.rows}
    assert accuracy["unseen"] > 0.8
    assert all(r["switch_gap"] is None and r["inference"] == "none" for r in run.rows)
    assert run.training is not None


def test_only_pairs_that_are_asked_about_are_computed(prepared: Prepared) -> None:
    method = method_of(prepared)
    predictor = method.predictor(rounds.start(method, prepared.config, 6).server, prepared.pool)
    index = torch.tensor([[3, 1], [1, 4]])
    first = predictor.predict(None, index)
    assert predictor.p.isnan().sum() == len(predictor.p) - 3
    predictor.probability = lambda pairs: pytest.fail("asked again")
    assert torch.equal(predictor.predict(None, index), first)


def test_the_learning_rate_falls_along_a_cosine(experiment: Path) -> None:
    config = configuration(experiment, lora__learning_rate=1.0, lora__final_learning_rate=0.2, lora__rounds=4)
    assert [learning_rate(config, t) for t in (0, 2)] == pytest.approx([1.0, 0.6])
    assert learning_rate(config, 4) == pytest.approx(0.2)


def test_its_settings_take_the_selectors_place_and_nobody_elses(experiment: Path) -> None:
    config = configuration(experiment, "fedvpa-gp")
    assert config.for_method("fedbt") == configuration(experiment, "fedbt")
    assert config.for_method("fedbt").federation == config.federation
    own = config.for_method("feddpo")
    assert own.for_method("feddpo") == own
    assert (own.federation.rounds, own.federation.server_learning_rate, own.federation.engine) == (3, 1.0, "loop")
    assert (own.federation.clients, own.federation.sampled_clients) == (6, 3)
    assert own.lora.final_learning_rate == 1e-5
    bis = configuration(experiment, "fedbt", backbone__train="lora", lora__learning_rate=None)
    assert bis.federation.learning_rate == bis.lora.final_learning_rate == 1e-5
