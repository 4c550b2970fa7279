from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch

from fedvpa.config import DataConfig, FederationConfig
from fedvpa.errors import UserError
from fedvpa.preferences import hh_files, hh_rlhf
from fedvpa.preferences.clients import partition
from fedvpa.preferences.hh_files import find_source, read_subset
from fedvpa.preferences.hh_rlhf import attributes_pool, objectives_pool, subsets_pool
from fedvpa.preferences.schema import prompt_key


def find_real() -> Path | None:
    here = Path(__file__).parents[2]
    named = os.environ.get("FEDVPA_HH_RLHF")
    places = [Path(named)] if named else [here / folder for folder in hh_files.FOLDERS]
    return next((p for p in places if (p / "objective-labels").is_dir()), None)


REAL = find_real()
real = pytest.mark.skipif(REAL is None, reason="HH-RLHF is not on this machine (set FEDVPA_HH_RLHF)")


def dialogue(prompt, response):
    return f"\n\nHuman: {prompt}\n\nAssistant: {response}"


def pair(prompt, chosen, rejected):
    return {"chosen": dialogue(prompt, chosen), "rejected": dialogue(prompt, rejected)}


def write(path, rows, compress=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows).encode()
    path.write_bytes(gzip.compress(data) if compress else data)


def label(row, number, objective, preferred):
    digest = hashlib.sha256(f"{row['chosen']}\0{row['rejected']}".encode()).hexdigest()[:16]
    return {"row": number, "pair": digest, "objective": objective, "preferred": preferred}


@pytest.fixture
def folder(tmp_path):
    """Both base subsets in the official layout; each response names its subset, so that labels can be read off."""
    for subset in ("helpful-base", "harmless-base"):
        for name, n in (("train", 60), ("test", 12)):
            rows = [pair(f"{subset} {name} prompt {i}", f"good {subset}", "bad") for i in range(n)]
            write(tmp_path / subset / f"{name}.jsonl.gz", rows)
            cycle = [("helpful", "chosen"), ("harmless", "rejected"), ("helpful", "rejected"), ("harmless", "chosen")]
            labels = [label(row, i, *cycle[i % 4]) for i, row in enumerate(rows) if i % 5]
            write(tmp_path / "objective-labels" / subset / f"{name}.jsonl.gz", labels)
    return tmp_path


def data(folder, **keys):
    return DataConfig(path=str(folder), **keys)


def liked(pool, labels):
    """Per pair the response that the label prefers."""
    return [None if y == 0 else p.a if y > 0 else p.b for p, y in zip(pool.pairs, labels.tolist(), strict=True)]


def test_attributes_follow_their_rules(folder):
    pool = attributes_pool(data(folder, groups=("longer", "shorter")))
    assert liked(pool, pool.group_labels[0]) == ["good helpful-base"] * 72
    assert liked(pool, pool.group_labels[1]) == ["bad"] * 72
    assert pool.opposite == (1, 0)
    assert pool.counts["pairs"] == 72
    assert pool.notes == (hh_rlhf.WARNING,)
    assert pool.switching_labels is None


def test_pairs_without_any_label_leave_the_pool(folder):
    with_question = [pair("p", "one two", "three?"), pair("q", "one", "two"), pair("r", "one?", "two")]
    write(folder / "helpful-base" / "train.jsonl.gz", with_question)
    pool = attributes_pool(data(folder, groups=("longer", "asks back")))
    assert pool.groups == ("longer", "asks-back")
    assert sorted(p.prompt[0].content for p in pool.pairs if "test" not in p.prompt[0].content) == ["p", "r"]
    assert pool.counts["pairs that no group labels"] == 1


def test_a_group_per_subset_with_crowd_labels(folder):
    pool = subsets_pool(data(folder))
    assert pool.groups == ("helpful-base", "harmless-base")
    for group, other in ((0, 1), (1, 0)):
        said = liked(pool, pool.group_labels[group])
        assert Counter(said) == {f"good {pool.groups[group]}": 72, None: 72}
        assert not (pool.group_labels[group].ne(0) & pool.group_labels[other].ne(0)).any()
    assert hh_rlhf.SUBSETS_NOTE in pool.notes


def test_objectives_label_across_subsets_and_cross_rows_make_the_switching_test(folder):
    pool = objectives_pool(data(folder))
    assert pool.groups == ("helpful", "harmless")
    assert not (pool.group_labels[0].ne(0) & pool.group_labels[1].ne(0)).any()
    row = next(i for i, p in enumerate(pool.pairs) if p.prompt[0].content == "harmless-base test prompt 2")  # conflict
    assert liked(pool, pool.group_labels[0])[row] == "bad"
    assert liked(pool, pool.switching_labels[0])[row] == "bad"
    assert liked(pool, pool.switching_labels[1])[row] == "good harmless-base"
    switching = pool.switching_labels.ne(0).all(0)
    assert torch.equal(pool.switching_labels[0], -pool.switching_labels[1])
    assert {pool.split[i] for i in switching.nonzero().flatten().tolist()} == {"test"}
    assert pool.counts["harmless-base test: conflicting cross rows"] == 2  # rows 2 and 6; rows 5 and 10 have no label
    made = partition(pool, data(folder), FederationConfig(unseen_clients=2), 0)
    assert len(made.switching) == 4


def test_one_objective_only_has_no_switching(folder):
    pool = objectives_pool(data(folder, groups=("helpful",)))
    assert pool.switching_labels.eq(0).all()
    assert pool.group_labels.shape[0] == 1


def test_dirty_official_rows_are_left_out_by_reason(folder):
    good = pair("p", "a", "b")
    rows = [
        good,
        pair("p", "same", "same"),
        pair("p", "x", " "),
        {"chosen": dialogue("p", "a"), "rejected": dialogue("q", "b")},
        {"chosen": dialogue("p", "a"), "rejected": "\n\nHuman: p"},
        pair("p", "b", "a"),
        pair("helpful-base test prompt 3!", "a", "b"),
    ]
    write(folder / "helpful-base" / "train.jsonl.gz", rows)
    counts = subsets_pool(data(folder)).counts
    for reason in (
        "chosen equals rejected",
        "empty response",
        "dialogues differ before the last Assistant turn",
        "not a dialogue that ends in an Assistant turn",
    ):
        assert counts[f"helpful-base train: {reason}"] == 1
    assert counts["duplicate rows"] == 1
    assert counts["training rows whose prompt is in a test file"] == 1
    assert counts["helpful-base train: rows"] == 7
    write(folder / "helpful-base" / "train.jsonl.gz", rows[1:3])
    with pytest.raises(UserError, match="helpful-base train holds no comparison"):
        subsets_pool(data(folder))


def test_malformed_rows_follow_on_invalid(folder):
    file = folder / "helpful-base" / "train.jsonl"
    (folder / "helpful-base" / "train.jsonl.gz").unlink()
    write(file, [pair("p", "a", "b c"), {"chosen": "x"}], compress=False)
    with pytest.raises(UserError) as e:
        attributes_pool(data(folder))
    assert str(e.value).startswith(f"{file}:2: rejected: missing column")
    assert attributes_pool(data(folder, on_invalid="skip")).counts["invalid rows"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair": "0" * 16}, "pair: is not the digest of row 1 of helpful-base/train; fetch labels and data together"),
        ({"pair": None}, "pair: must be text, not null"),
        ({"row": -1}, "row: must be a row number from 0"),
        ({"row": True}, "row: must be a row number from 0"),
        ({"objective": "funny"}, "objective: must be helpful or harmless"),
        ({"preferred": "both"}, "preferred: must be chosen or rejected"),
    ],
)
def test_labels_that_do_not_fit_the_rows(folder, change, message):
    file = folder / "objective-labels" / "helpful-base" / "train.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    write(file, [rows[0] | change, *rows[1:]])
    with pytest.raises(UserError) as e:
        objectives_pool(data(folder))
    assert str(e.value) == f"{file}:1: {message}"


@pytest.mark.parametrize(
    ("pool", "keys", "message"),
    [
        (
            attributes_pool,
            {"subsets": ("helpfull",)},
            "data.subsets: no train.jsonl.gz or train.jsonl in subset 'helpfull'",
        ),
        (attributes_pool, {"groups": ("helpful",)}, "data.groups: unknown group 'helpful'"),
        (subsets_pool, {"subsets": ("helpful-base",)}, "data.subsets: hh-subsets needs two subsets"),
        (subsets_pool, {"groups": ("longer",)}, "data.groups: unknown group 'longer'"),
        (objectives_pool, {"subsets": ("other",)}, "data.subsets: subset 'other' has no objective of its own"),
    ],
)
def test_keys_that_do_not_fit(folder, pool, keys, message):
    with pytest.raises(UserError) as e:
        pool(data(folder, **keys))
    assert message in str(e.value)


def test_the_search_for_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDVPA_HH_RLHF", raising=False)
    assert find_source(None) == "Anthropic/hh-rlhf"
    (tmp_path / "data" / "hh-rlhf").mkdir(parents=True)
    assert find_source(None) == Path("data/hh-rlhf")
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("FEDVPA_HH_RLHF", "mine")
    assert find_source(None) == Path("mine")
    assert find_source("somebody/hh-copy") == "somebody/hh-copy"
    monkeypatch.setenv("FEDVPA_HH_RLHF", "/nowhere/at/all")
    with pytest.raises(UserError, match=r"^/nowhere/at/all: \$FEDVPA_HH_RLHF: no such folder; set data.path"):
        find_source(None)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: data\.path: is a file, not a folder"):
        find_source("file")


def test_from_the_hub(folder, monkeypatch):
    asked = []

    def load_dataset(name, split, data_dir):
        asked.append((name, split, data_dir))
        lines = gzip.decompress((folder / data_dir / f"{split}.jsonl.gz").read_bytes()).splitlines()
        return [json.loads(line) for line in lines]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    there, here = subsets_pool(data("Anthropic/hh-rlhf")), subsets_pool(data(folder))
    assert there.pairs == here.pairs
    assert torch.equal(there.group_labels, here.group_labels)
    assert asked[0] == ("Anthropic/hh-rlhf", "train", "helpful-base")
    with pytest.raises(UserError, match="the Hub's release has no objective labels"):
        objectives_pool(data("Anthropic/hh-rlhf"))


def test_a_hub_that_does_not_answer(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach it.\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as e:
        attributes_pool(data("Anthropic/hh-rlhf"))
    assert str(e.value).startswith(
        "Anthropic/hh-rlhf: cannot be loaded from the Hub (Couldn't reach it); set data.path"
    )


def test_notes_of_a_partition_and_of_mixed_subsets(folder):
    (folder / "README.md").write_text(f"Say\n{hh_files.PARTITION.replace(' of ', chr(10) + 'of ')}.")
    write(folder / "helpful-online" / "train.jsonl.gz", [pair("new", "a", "b")])
    write(folder / "helpful-online" / "test.jsonl.gz", [pair("newer", "a", "b")])
    notes = subsets_pool(data(folder, subsets=("helpful-base", "helpful-online"))).notes
    assert f"Models were {hh_files.PARTITION}." in notes
    assert hh_rlhf.MIXED_NOTE in notes


def test_labels_without_their_folder(folder):
    (folder / "objective-labels").rename(folder / "elsewhere")
    with pytest.raises(UserError, match="no folder objective-labels/"):
        objectives_pool(data(folder))


# On the real data


@real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("subset", "train", "test"),
    [
        ("helpful-base", 1763, 285),
        ("harmless-base", 1669, 319),
        ("helpful-online", 854, 127),
        ("helpful-rejection-sampled", 2055, 317),
    ],
)
def test_real_counts_and_the_readme_s_split_by_prompt(subset, train, test):
    for name, n in (("train", train), ("test", test)):
        counts = Counter()
        rows = read_subset(REAL, subset, name, "error", counts)
        assert len(rows) == n
        assert counts == {f"{subset} {name}: rows": n}
        for row in rows:
            bucket = int(hashlib.sha256(prompt_key(row.pair.prompt).encode()).hexdigest(), 16) % 100
            assert bucket < 75 if name == "train" else 75 <= bucket <= 87


@real
@pytest.mark.slow
def test_real_cross_rows():
    pool = objectives_pool(data(REAL))
    figures = {k: v for k, v in pool.counts.items() if "cross rows" in k}
    assert figures == {
        "helpful-base train: cross rows": 646,
        "helpful-base train: conflicting cross rows": 311,
        "helpful-base test: cross rows": 114,
        "helpful-base test: conflicting cross rows": 53,
        "harmless-base train: cross rows": 755,
        "harmless-base train: conflicting cross rows": 333,
        "harmless-base test: cross rows": 150,
        "harmless-base test: conflicting cross rows": 66,
    }
    assert pool.counts["pairs"] == 1489 + 241 + 1484 + 282
    assert pool.switching_labels.ne(0).sum(1).tolist() == [53 + 66] * 2
    assert f"Models were {hh_files.PARTITION}." in pool.notes


@real
@pytest.mark.slow
@pytest.mark.parametrize("make", [attributes_pool, subsets_pool, objectives_pool])
def test_real_pools(make):
    pool = make(data(REAL))
    splits = {}
    for p, split in zip(pool.pairs, pool.split, strict=True):
        assert splits.setdefault(prompt_key(p.prompt), split) == split
    share = pool.split.count("validation") / (pool.split.count("validation") + pool.split.count("train"))
    assert 0.08 < share < 0.12
    assert len({frozenset((p.a, p.b)) | {p.prompt} for p in pool.pairs}) == len(pool.pairs)
    for labels in pool.group_labels:
        own = labels[labels.ne(0)].double()
        assert abs(own.mean()) < 4 / len(own) ** 0.5  # the order of a and b tells nothing
    made = partition(pool, data(REAL), FederationConfig(), 0)
    for clients in made.clients.values():
        assert all(len(set(c.train.index.tolist())) == len(c.train) == 16 for c in clients)


@real
@pytest.mark.slow
def test_real_opposite_groups():
    pool = attributes_pool(data(REAL, groups=("longer", "shorter", "asks-back", "does-not-ask")))
    assert torch.equal(pool.group_labels[0], -pool.group_labels[1])
    assert torch.equal(pool.group_labels[2], -pool.group_labels[3])
