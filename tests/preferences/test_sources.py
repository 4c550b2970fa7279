from __future__ import annotations

import json
from typing import get_args

import pytest
import torch

from fedvpa.config import PEOPLE_SOURCES, SOURCES, parse_config
from fedvpa.preferences.reading import read_people
from fedvpa.preferences.schema import POPULATIONS, Split
from fedvpa.preferences.sources import POOLS, load_preferences, with_queries


def config(**data):
    return parse_config({"data": data, "federation": {"clients": 10, "unseen_clients": 4, "validation_clients": 4}})


def hh(tmp_path):
    for subset in ("helpful-base", "harmless-base"):
        folder = tmp_path / subset
        folder.mkdir()
        for name in ("train", "test"):
            turns = [(f"\n\nHuman: {subset} {name} {i}\n\nAssistant: ", i) for i in range(80)]
            rows = [{"chosen": f"{t}yes", "rejected": f"{t}no it is not"} for t, _ in turns]
            (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path)


def users(tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b", "user_id": i % 20} for i in range(200)]
    (tmp_path / "users.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "users.jsonl")


def test_every_source_of_the_configuration_has_a_loader():
    assert {*POOLS, *PEOPLE_SOURCES} == set(SOURCES)


@pytest.mark.parametrize(
    ("name", "path"), [("synthetic", None), ("hh-attributes", hh), ("hh-subsets", hh), ("jsonl", users)]
)
def test_load_preferences(tmp_path, name, path):
    wanted = config(name=name, path=path and path(tmp_path))
    made, again = load_preferences(wanted), load_preferences(wanted)
    assert tuple(made.clients) == POPULATIONS
    assert [len(made.clients[p]) for p in POPULATIONS] == [10, 4, 4]
    assert set(made.split) == set(get_args(Split))
    assert made.group_labels.shape == (len(made.groups), len(made.pairs))
    assert made.pairs == again.pairs
    for population in POPULATIONS:
        for one, two in zip(made.clients[population], again.clients[population], strict=True):
            assert torch.equal(one.train.index, two.train.index)
            assert torch.equal(one.test.y, two.test.y)
            assert len(one.train) >= 2
            assert len(one.test)


def test_ratings_and_a_single_prompt_are_asked_on_known_items_unless_told_otherwise(tmp_path):
    lines = ["user,prompt,chosen,rejected", *(f"u{u},Which?,{a},{b}" for u in range(6) for a, b in ("AB", "CD"))]
    (tmp_path / "one.csv").write_text("\n".join(lines))
    (tmp_path / "many.csv").write_text("\n".join([*lines, "u0,What?,A,B"]))
    votes = ["user,prompt,text,label", *(f"u{u},p{k},{k},{k == u}" for u in range(6) for k in range(3))]
    (tmp_path / "votes.csv").write_text("\n".join(votes))

    def queries(name, **evaluation):
        tree = {"data": {"name": "table", "path": str(tmp_path / name)}, "evaluation": evaluation}
        wanted = parse_config(tree)
        return with_queries(wanted, read_people(wanted.data)).evaluation.queries

    assert [queries(n) for n in ("one.csv", "many.csv", "votes.csv")] == ["known-items", "by-prompt", "known-items"]
    assert queries("one.csv", queries="new-items") == "new-items"
    assert queries("one.csv", queries="by-prompt") == "by-prompt"
