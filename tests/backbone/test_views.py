"""Several layers and poolings in one pass of the model: the features are those of single passes, and none is lost."""

from __future__ import annotations

import sqlite3
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch

from fedvpa.backbone.forward import FrozenLM
from fedvpa.backbone.packing import Batch
from fedvpa.backbone.store import Entry, Store

VIEWS = [{"layer": layer, "pooling": pooling} for layer, pooling in product((1, 0.5, 3, 1.0), ("mean", "last"))]


class Passes:
    """What the models ran, without the two batches by which each is checked when it is loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[Batch] = []
        self.layers: list[set[int]] = []
        self.stop_at: int | None = None
        whole, load = FrozenLM.hidden, FrozenLM.__init__

        def init(lm, model, dtype, device, layers, max_tokens):
            self.layers.append(set(layers))
            load(lm, model, dtype, device, layers, max_tokens)
            self.batches.clear()

        def hidden(lm, batch):
            if len(self.batches) == self.stop_at and hasattr(lm, "packed"):
                raise KeyboardInterrupt
            self.batches.append(batch)
            return whole(lm, batch)

        monkeypatch.setattr(FrozenLM, "__init__", init)
        monkeypatch.setattr(FrozenLM, "hidden", hidden)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    return Passes(monkeypatch)


def entries(backbone) -> dict[bytes, tuple[int, bytes]]:
    """What a backbone's store holds: key -> (row number, which changes when it is written again; vector)."""
    found = backbone._view(backbone._features).store.path
    with sqlite3.connect(found) as db:
        return {key: (row, value) for key, row, value in db.execute("SELECT key, rowid, value FROM vectors")}


def vectors(backbone) -> dict[bytes, bytes]:
    return {key: value for key, (_, value) in entries(backbone).items()}


@pytest.mark.parametrize("packed", [True, False])
def test_one_pass_stores_what_single_passes_store_bit_by_bit(
    tiny, backbone_of, pairs, tmp_path, passes, monkeypatch, packed
) -> None:
    if not packed:
        monkeypatch.setattr(FrozenLM, "_packing_is_exact", lambda self: False)
    alone = [backbone_of(tiny, tmp_path / "alone", batch_tokens=96, **view) for view in VIEWS]
    single = [backbone.encode_pairs(pairs, progress=False) for backbone in alone]
    ran = len(passes.batches)
    assert ran > 2
    together = [backbone_of(tiny, batch_tokens=96, **view) for view in VIEWS]
    found = together[0].encode_pairs(pairs, progress=False, beside=together[1:])
    assert len(passes.batches) == ran
    assert passes.layers[-1] == {1, 2, 3, 4}
    assert passes.layers[:-1] == [{1}, {1}, {2}, {2}, {3}, {3}, {4}, {4}]
    assert torch.equal(found.a, single[0].a)
    assert torch.equal(found.b, single[0].b)
    assert found.report.tokens == single[0].report.tokens
    for one, other in zip(alone, together, strict=True):
        assert vectors(one) == vectors(other)
        assert len(vectors(one)) == 8
    assert len({frozenset(vectors(backbone).items()) for backbone in together}) == len(VIEWS)


def test_only_what_is_missing_is_computed(tiny, backbone_of, pairs, passes) -> None:
    first, second, deep, last = (backbone_of(tiny, **view) for view in (VIEWS[0], VIEWS[2], VIEWS[6], VIEWS[7]))
    deep.encode_pairs(pairs, progress=False)
    second.encode_pairs(pairs[:3], progress=False)
    before = {backbone: entries(backbone) for backbone in (second, deep)}
    report = first.encode_pairs(pairs, progress=False, beside=[second, deep]).report
    assert passes.layers[-1] == {1, 2}  # the deep one is complete: its blocks are not run
    assert (report.computed, report.cached) == (4, 0)
    assert entries(deep) == before[deep]
    assert entries(second).items() > before[second].items()  # the others' rows are as they were
    assert len(entries(second)) == len(entries(first)) == 8

    passes.batches.clear()
    report = first.encode_pairs([*pairs, *pairs], progress=False, beside=[second, deep]).report
    assert (report.computed, report.cached, report.tokens, report.packed) == (0, 8, 0, None)
    assert passes.batches == []

    report = first.encode_pairs(pairs, progress=False, beside=[last]).report  # only one beside lacks something
    assert (passes.layers[-1], report.computed) == ({4}, 4)
    assert len(entries(last)) == 8


def test_two_names_of_one_layer_share_a_store(tiny, backbone_of, pairs, passes) -> None:
    share, index = backbone_of(tiny, layer=0.5), backbone_of(tiny, layer=2)
    found = share.encode_pairs(pairs, progress=False, beside=[index])
    assert passes.layers == [{2}]
    assert torch.equal(index.encode_pairs(pairs, progress=False).a, found.a)
    assert passes.layers == [{2}]


def test_choice_logits_are_computed_once_for_all(tiny, backbone_of, pairs, passes) -> None:
    some = [backbone_of(tiny, choice_logits=True, **view) for view in VIEWS[:4]]
    found = some[0].encode_pairs(pairs, progress=False, beside=some[1:])
    assert passes.layers == [{1, 2}, {None}]
    assert torch.equal(some[3].encode_pairs(pairs, progress=False).base_logit, found.base_logit)
    assert len(passes.layers) == 2


def test_another_model_cannot_come_along(tiny, chatty, backbone_of, pairs) -> None:
    for other in (backbone_of(chatty), backbone_of(tiny, max_tokens=40), backbone_of(tiny, dtype="bfloat16")):
        with pytest.raises(AssertionError):
            backbone_of(tiny).encode_pairs(pairs, progress=False, beside=[other])


@pytest.mark.parametrize("where", ["between batches", "between stores"])
def test_an_interruption_loses_one_batch_at_most_and_nothing_is_stored_twice(
    tiny, backbone_of, pairs, tmp_path: Path, passes, monkeypatch, where
) -> None:
    written: Counter[tuple[Path, bytes]] = Counter()
    put, puts = Store.put, []

    def counted(store: Store, new: dict[bytes, Entry]) -> None:
        puts.append(store)
        if where == "between stores" and len(puts) == 16 + 3:  # the third batch, after two of its stores
            raise KeyboardInterrupt
        put(store, new)
        written.update((store.path, key) for key in new)

    monkeypatch.setattr(Store, "put", counted)
    if where == "between batches":
        passes.stop_at = 2
    some = [backbone_of(tiny, batch_tokens=64, **view) for view in VIEWS]
    with pytest.raises(KeyboardInterrupt):
        some[0].encode_pairs(pairs, progress=False, beside=some[1:])
    kept = [len(entries(backbone)) for backbone in some]
    assert min(kept) > 0
    assert (max(kept) > min(kept)) == (where == "between stores")
    passes.stop_at = None
    again = [backbone_of(tiny, batch_tokens=64, **view) for view in VIEWS]
    found = again[0].encode_pairs(pairs, progress=False, beside=again[1:])
    assert 0 < found.report.computed < 4
    assert len(written) == 8 * len(VIEWS)
    assert set(written.values()) == {1}
    for backbone, view in zip(again, VIEWS, strict=True):
        want = backbone_of(tiny, tmp_path / "whole", batch_tokens=64, **view).encode_pairs(pairs, progress=False)
        got = backbone.encode_pairs(pairs, progress=False)
        assert got.report.computed == 0
        torch.testing.assert_close(got.a, want.a, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got.b, want.b, atol=1e-5, rtol=1e-4)
