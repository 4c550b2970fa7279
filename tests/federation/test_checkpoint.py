"""Checkpoints: everything comes back, training goes on to the same bits, and damage costs one checkpoint at most."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedvpa.errors import UserError
from fedvpa.evaluation.experiment import Prepared
from fedvpa.federation import checkpoint
from fedvpa.federation.rounds import TrainingState, start, train
from toy import method_of, settings, world


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Everything in a state by dotted name."""
    if hasattr(value, "__dataclass_fields__"):
        value = vars(value)
    if isinstance(value, dict):
        found: dict[str, Any] = {f"{name}()": len(value)}
        for k, v in value.items():
            found |= leaves(v, f"{name}.{k}")
        return found
    return {name: value}


def assert_same(one: TrainingState, two: TrainingState) -> None:
    left, right = leaves(one), leaves(two)
    assert left.keys() == right.keys()
    for name, value in left.items():
        same = torch.equal(value, right[name]) if isinstance(value, Tensor) else value == right[name]
        assert same, name
        assert not isinstance(value, Tensor) or value.dtype == right[name].dtype, name


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return world(settings(federation__rounds=5, federation__server_optimizer="adam", method__selector_warmup=0.2))


@pytest.mark.parametrize(
    "name",
    ["fedvpa-gp", "fedvpl", "fedbt", "central-vpl", "vmtl", "fedbiscuit", "fedpdpo", "pluralllm", "fedvpa-gp+labels"],
)
def test_training_goes_on_to_the_same_bits(prepared: Prepared, name: str, tmp_path: Path) -> None:
    method, config, clients = method_of(prepared, name), prepared.config, prepared.clients
    whole: list[TrainingState] = []
    train(method, config, clients, None, lambda _, state: whole.append(state))
    checkpoint.save(tmp_path, whole[2], {"seconds": [0.5, 1 / 3]})
    found = checkpoint.load(tmp_path)
    assert found is not None
    state, extra = found
    assert_same(state, whole[2])
    assert extra == {"seconds": [0.5, 1 / 3]}
    assert_same(train(method_of(prepared, name), config, clients, state), whole[-1])


@pytest.fixture
def three(prepared: Prepared, tmp_path: Path) -> Path:
    method = method_of(prepared)

    def keep(_: Any, state: TrainingState) -> None:
        if state.server.round <= 3:
            checkpoint.save(tmp_path / "c", state, {"round": state.server.round})

    train(method, prepared.config, prepared.clients, None, keep)
    return tmp_path / "c"


def test_the_last_two_are_kept(three: Path) -> None:
    assert [p.name for p in checkpoint.checkpoints(three)] == ["round-000003", "round-000002"]
    assert sorted(p.name for p in three.iterdir()) == ["round-000002", "round-000003"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("state.safetensors", truncate, "checksum"),
        ("state.safetensors", flip, "checksum"),
        ("state.safetensors", Path.unlink, "No such file"),
        ("state.json", truncate, "not readable"),
        ("state.json", lambda p: p.write_text("{}"), "unknown format"),
        ("state.json", lambda p: p.write_bytes(b"\xff\x00"), "not readable"),
        ("state.json", lambda p: p.write_text('{"format": 2}'), "not readable"),
    ],
)
def test_a_damaged_newest_falls_back_to_the_one_before(three: Path, name: str, damage: Any, reason: str) -> None:
    damage(three / "round-000003" / name)
    told: list[str] = []
    found = checkpoint.load(three, told.append)
    assert found is not None
    assert (found[0].server.round, found[1]) == (2, {"round": 2})
    assert len(told) == 1
    assert "round-000003" in told[0]
    assert reason in told[0]
    checkpoint.save(three, found[0], {})  # the next save of the same round replaces a damaged one
    assert [p.name for p in checkpoint.checkpoints(three)] == ["round-000003", "round-000002"]


def test_a_damaged_one_is_replaced_when_its_round_comes_again(three: Path, prepared: Prepared) -> None:
    whole = checkpoint.load(three)
    assert whole is not None
    flip(three / "round-000003" / "state.safetensors")
    checkpoint.save(three, whole[0], {"again": True})
    found = checkpoint.load(three, pytest.fail)
    assert found is not None
    assert found[1] == {"again": True}


def test_nothing_there(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "missing") is None
    (tmp_path / ".new-abc" / "round-000001").mkdir(parents=True)  # what a killed save leaves behind
    assert checkpoint.load(tmp_path) is None


def test_all_damaged(three: Path) -> None:
    for path in checkpoint.checkpoints(three):
        truncate(path / "state.json")
    told: list[str] = []
    assert checkpoint.load(three, told.append) is None
    assert len(told) == 2


def test_a_full_disk_leaves_the_earlier_ones(three: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fedvpa.federation.checkpoint.os.fsync", full)
    state = start(method_of(prepared), prepared.config, len(prepared.clients))
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(three, state, {})
    assert sorted(p.name for p in three.iterdir()) == ["round-000002", "round-000003"]
    found = checkpoint.load(three, pytest.fail)
    assert found is not None
    assert found[1] == {"round": 3}


@pytest.mark.parametrize("format", [1, 999])
def test_another_format_is_named_and_nothing_begins_anew(three: Path, format: int) -> None:
    (three / "round-000003/state.json").write_text(json.dumps({"format": format}))
    with pytest.raises(UserError, match=f"format {format}, this version reads 2"):
        checkpoint.load(three)
