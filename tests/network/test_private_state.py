"""Private state on a node's disk: whole or not there, of one training, and able to go back."""

from __future__ import annotations

from pathlib import Path

import torch

from fedvpa.network.state import PrivateStore

LIKE = {"log_pi": torch.zeros(1, 3)}


def rows(value: float) -> dict[str, torch.Tensor]:
    return {"log_pi": torch.full((1, 3), float(value))}


def value(store: PrivateStore, round: int) -> float | None:
    found = store.load("ada", round, LIKE)
    return None if found is None else float(found["log_pi"][0, 0])


def test_the_newest_state_from_before_a_round(tmp_path: Path) -> None:
    store = PrivateStore(tmp_path, "t")
    for round in (1, 4, 6):
        store.save("ada", round, rows(round), 0)
    assert [value(store, r) for r in (0, 1, 2, 4, 5, 6, 7)] == [None, None, 1, 1, 4, 4, 6]
    assert store.load("bob", 7, LIKE) is None


def test_a_restart_forgets_what_was_lost_with_the_server(tmp_path: Path) -> None:
    store = PrivateStore(tmp_path, "t")
    for round in (1, 4, 6):
        store.save("ada", round, rows(round), 0)
    store.rewind("ada", 4)
    assert value(store, 9) == 1


def test_only_what_a_restart_can_need_is_kept(tmp_path: Path) -> None:
    store = PrivateStore(tmp_path, "t")
    for round in range(10):
        store.save("ada", round, rows(round), keep_from=6)
    assert sorted(p.stem for p in (tmp_path / "ada").iterdir()) == [f"round-{r:06d}" for r in (5, 6, 7, 8, 9)]
    assert value(store, 6) == 5


def test_another_training_and_damage_count_as_nothing(tmp_path: Path) -> None:
    PrivateStore(tmp_path, "old").save("ada", 3, rows(3), 0)
    store = PrivateStore(tmp_path, "new")
    assert value(store, 9) is None
    store.save("ada", 4, rows(4), 0)
    assert [p.stem for p in (tmp_path / "ada").iterdir()] == ["round-000004"]
    store.save("ada", 5, rows(5), 0)
    (tmp_path / "ada/round-000005.safetensors").write_bytes(b"half a file")
    assert value(store, 9) == 4
    store.save("ada", 6, {"log_pi": torch.zeros(1, 8)}, 0)  # of a federation of another size
    assert value(store, 9) == 4


def test_nothing_is_written_for_a_method_without_private_state(tmp_path: Path) -> None:
    PrivateStore(tmp_path / "state", "t").save("ada", 0, {}, 0)
    assert not (tmp_path / "state").exists()
