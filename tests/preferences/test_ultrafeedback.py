from __future__ import annotations

import json

import datasets
import pytest
import torch

from fedvpa.config import DataConfig, FederationConfig
from fedvpa.errors import UserError
from fedvpa.preferences.clients import partition
from fedvpa.preferences.ultrafeedback import ATTRIBUTES, ultrafeedback_pool


def completion(response, *ratings):
    marks = {a: {"Rating": str(r), "Rationale": "so"} for a, r in zip(ATTRIBUTES, ratings, strict=False)}
    return {"model": "m", "response": response, "annotations": marks}


def prompt(text, *completions):
    return {"source": "evol_instruct", "instruction": text, "completions": list(completions)}


@pytest.fixture
def rows():
    """Help 0 always has the higher helpfulness, hone 0 the higher honesty."""
    return [prompt(f"prompt {i}", completion("help", 5, 1, 3, 2), completion("hone", 1, 5, 3, 4)) for i in range(300)]


def write(path, rows):
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return DataConfig(name="ultrafeedback-p", path=str(path))


def test_single_attribute_raters(tmp_path, rows):
    pool = ultrafeedback_pool(write(tmp_path / "x.jsonl", rows))
    assert pool.groups == ("helpfulness", "honesty")
    assert pool.opposite == (1, 0)
    assert len(pool.pairs) == 300
    for pair, y in zip(pool.pairs, pool.group_labels.T.tolist(), strict=True):
        assert (pair.a if y[0] == 1 else pair.b) == "help"
        assert y[1] == -y[0]
    assert abs(pool.group_labels[0].double().mean()) < 0.25
    assert [round(pool.split.count(s) / 300, 1) for s in ("train", "validation", "test")] == [0.8, 0.1, 0.1]
    made = partition(pool, DataConfig(), FederationConfig(), 0)
    assert len(made.clients["seen"]) == 40


def test_four_attributes_with_ties(tmp_path, rows):
    config = write(tmp_path / "x.jsonl", rows).model_copy(update={"groups": ("UF-P-4",)})
    pool = ultrafeedback_pool(config)
    assert pool.groups == ATTRIBUTES
    help_, honest, follow, truth = pool.group_labels
    assert torch.equal(help_, -honest)
    assert torch.equal(honest, truth)
    assert not follow.any()


def test_only_pairs_on_which_groups_disagree(tmp_path):
    config = write(
        tmp_path / "x.jsonl",
        [
            prompt("agreed", completion("a", 5, 5), completion("b", 1, 1)),
            prompt("tie", completion("a", 5, 3), completion("b", 1, 3)),
            prompt("unrated", completion("a", 5, "N/A"), completion("b", 1, 5)),
            prompt("same text", completion("a", 5, 1), completion("a ", 1, 5)),
            prompt("no answer", completion("", 5, 1), completion("b", 1, 5)),
            prompt("three", completion("a", 5, 1), completion("b", 1, 5), completion("c", 1, 1)),
            prompt("three", completion("d", 5, 1), completion("e", 1, 5)),
        ],
    )
    pool = ultrafeedback_pool(config)
    assert [(p.prompt[0].content, {p.a, p.b}) for p in pool.pairs] == [("three", {"a", "b"})]
    assert pool.counts == {"prompts": 7, "prompts without a disagreement": 5, "repeated prompts": 1, "pairs": 1}


def test_one_pair_per_prompt(tmp_path):
    many = [prompt("p", *(completion(str(i), i, 4 - i) for i in range(4)))]
    assert len(ultrafeedback_pool(write(tmp_path / "x.jsonl", many)).pairs) == 1


def test_a_folder_of_files_and_the_hub_give_the_same(tmp_path, rows, monkeypatch):
    write(tmp_path / "a.jsonl", rows[:200])
    write(tmp_path / "b.jsonl", rows[200:])
    here = ultrafeedback_pool(DataConfig(path=str(tmp_path)))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or rows)
    there = ultrafeedback_pool(DataConfig())
    assert ultrafeedback_pool(DataConfig(path="some/copy")).pairs == there.pairs == here.pairs
    assert asked == [("openbmb/UltraFeedback", "train"), ("some/copy", "train")]


def bad(**change):
    return prompt("p", completion("a", 5, 1) | change, completion("b", 1, 5))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": []}, ":1: instruction: missing column"),
        ({"instruction": "p"}, ":1: completions: missing column"),
        ({"instruction": "p", "completions": "x"}, ":1: completions: must be a list, not text"),
        ({"instruction": "p", "completions": [3]}, ":1: completions[0]: must be an object"),
        (bad(annotations=None), ":1: completions[0]: must be an object with response and annotations"),
        (bad(response=None), ":1: completions[0].response: must be text, not null"),
        (
            bad(annotations={"honesty": {"Rating": "high"}}),
            ":1: completions[0].annotations.honesty.Rating: must be a number",
        ),
        (bad(annotations={"honesty": [1]}), ":1: completions[0].annotations.honesty.Rating: must be a number"),
        (prompt("p", completion("a", 1, 1)), ": no pair on which two groups disagree"),
    ],
)
def test_mistakes(tmp_path, row, message):
    config = write(tmp_path / "x.jsonl", [row])
    with pytest.raises(UserError) as e:
        ultrafeedback_pool(config)
    assert str(e.value).startswith(f"{config.path}{message}")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"groups": ("helpful",)}, "data.groups: unknown group 'helpful'; did you mean helpfulness?"),
        ({"groups": ("honesty",)}, "data.groups: needs two groups at least"),
        ({"path": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"path": "data/nowhere.jsonl"}, "data/nowhere.jsonl: no such file"),
    ],
)
def test_keys_that_do_not_fit(keys, message):
    with pytest.raises(UserError) as e:
        ultrafeedback_pool(DataConfig(**keys))
    assert str(e.value).startswith(message)


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"no \.jsonl or \.jsonl.gz file in the folder"):
        ultrafeedback_pool(DataConfig(path=str(tmp_path)))


def test_spaces_and_hyphens_in_names(tmp_path, rows):
    config = write(tmp_path / "x.jsonl", rows).model_copy(update={"groups": ("Honesty", "instruction-following")})
    with pytest.raises(UserError, match="no pair on which two groups disagree"):
        ultrafeedback_pool(config)  # every answer has the same rating for following instructions
