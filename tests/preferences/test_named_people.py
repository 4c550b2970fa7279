"""Named sources of people: Polis' export, PRISM, and the folders of shared/data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedvpa.config import DataConfig
from fedvpa.errors import UserError
from fedvpa.preferences import prism
from fedvpa.preferences.polis import ATTRIBUTION, SHIPPED, find
from fedvpa.preferences.reading import read_people
from fedvpa.preferences.schema import CHOICE, RATING, VOTE, Message

SHARED = Path(os.environ.get("FEDVPA_SHARED", Path(__file__).parents[3] / "shared")) / "data"


def told(people):
    j = people.judgements
    text = [*(i.text for i in people.items), None]
    rows = zip(people.user.tolist(), j.first.tolist(), j.second.tolist(), j.value.tolist(), strict=True)
    return {(people.users[u], text[a], text[b], v) for u, a, b, v in rows}


def polis(folder, agree=1):
    folder.mkdir()
    (folder / "comments.csv").write_text(
        "timestamp,datetime,comment-id,author-id,agrees,disagrees,moderated,comment-body\n"
        '1,x,0,10,2,1,1,"More trees, please"\n1,x,1,11,1,2,0,Fewer cars\n1,x,2,11,9,0,-1,Buy pills\n'
    )
    votes = [(1, 0, 10, 1), (9, 0, 11, 1), (2, 0, 11, -1), (3, 0, 12, 1), (3, 0, 13, -1), (4, 1, 10, -1)]
    votes += [(4, 1, 12, -1), (5, 1, 13, 1), (5, 1, 14, 0), (6, 2, 12, 1)]
    lines = [f"{time},x,{item},{user},{agree * vote}" for time, item, user, vote in votes]
    (folder / "votes.csv").write_text("\n".join(["timestamp,datetime,comment-id,voter-id,vote", *lines]))
    (folder / "summary.csv").write_text('topic,"Our town, tomorrow"\nurl,x\nvoters,5\n')
    return folder


@pytest.mark.parametrize("agree", [1, -1])
@pytest.mark.parametrize("name", ["polis", "table"])
def test_polis_export(tmp_path, name, agree):
    people = read_people(DataConfig(name=name, path=str(polis(tmp_path / "export", agree))))
    trees, cars = "More trees, please", "Fewer cars"
    assert told(people) == {
        ("11", trees, None, 1),  # the later of two votes
        ("12", trees, None, 1),
        ("13", trees, None, -1),
        ("10", cars, None, -1),
        ("12", cars, None, -1),
        ("13", cars, None, 1),
    }
    assert {i.prompt for i in people.items} == {(Message("user", "Our town, tomorrow"),)}
    assert set(people.judgements.kind.tolist()) == {VOTE}
    assert people.counts == {
        "rows": 10,
        "rejected statements": 1,
        "votes on rejected statements": 1,
        "authors' own votes": 1,
        "votes that were changed": 1,
        "passes": 1,
    }
    assert "Attribution to The Computational Democracy Project" in people.notes[0]


def test_mistakes_in_a_polis_export(tmp_path):
    folder = polis(tmp_path / "export")
    votes = (folder / "votes.csv").read_text()
    for change, message in (
        (("3,x,0,12,1", "3,x,0,12,5"), "votes.csv:5: vote: must be 1, 0 or -1, not 5"),
        (("3,x,0,12,1", "3,x,7,12,1"), "votes.csv:5: comment-id: no statement '7' in comments.csv"),
        (("voter-id", "voter"), "votes.csv:1: voter-id: missing column; there are timestamp"),
    ):
        (folder / "votes.csv").write_text(votes.replace(*change))
        with pytest.raises(UserError) as e:
            read_people(DataConfig(name="polis", path=str(folder)))
        assert str(e.value).startswith(f"{folder}/{message}")


def test_a_conversation_that_is_shipped():
    found = read_people(DataConfig(name="polis"))
    assert (len(found.users), len(found.items), len(found.user)) == (1880, 607, 147371)
    assert found.notes == (ATTRIBUTION,)
    assert find("bowling-green") == find(None)
    assert all((folder / "ATTRIBUTION.txt").is_file() for folder in SHIPPED.iterdir())


def test_only_data_that_may_be_shipped_is_there():
    shipped = [f.relative_to(SHIPPED.parent).as_posix() for f in SHIPPED.parent.rglob("*") if f.is_file()]
    folder = "polis/bowling-green"
    assert sorted(shipped) == [f"{folder}/{name}" for name in ("ATTRIBUTION.txt", "items.csv.gz", "ratings.csv.gz")]


def test_a_path_goes_before_the_name_of_what_is_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    polis(tmp_path / "bowling-green")
    assert len(read_people(DataConfig(name="polis", path="bowling-green")).items) == 2
    with pytest.raises(UserError, match=r"^elsewhere: no such file or folder; .* shipped \(bowling-green\)"):
        read_people(DataConfig(name="polis", path="elsewhere"))


def utterance(turn, interaction, text, chosen, prompt, user="user1", dialogue="c1"):
    return {
        "user_id": user,
        "conversation_id": dialogue,
        "interaction_id": interaction,
        "turn": turn,
        "user_prompt": prompt,
        "model_response": text,
        "score": 90 if chosen else 20,
        "if_chosen": chosen,
    }


PRISM = [
    utterance(1, "i2", "Later good", True, "And then?"),
    utterance(0, "i1", "Bad", False, "Hello?"),
    utterance(0, "i1", "Good", True, "Hello?"),
    utterance(0, "i1", "Worse", False, "Hello?"),
    utterance(1, "i2", "Later bad", False, "And then?"),
    utterance(0, "i3", "One", True, "Hi", "user2", "c2"),
    utterance(0, "i3", "Two", True, "Hi", "user2", "c2"),
]


def test_prism_compares_the_chosen_reply_with_each_other_one(tmp_path, monkeypatch):
    path = tmp_path / "utterances.jsonl"
    path.write_text("\n".join(map(json.dumps, PRISM)))
    people = read_people(DataConfig(name="prism", path=str(path)))
    assert told(people) == {
        ("user1", "Good", "Bad", 1),
        ("user1", "Good", "Worse", 1),
        ("user1", "Later good", "Later bad", 1),
    }
    prompts = {i.text: i.prompt for i in people.items}
    hello = Message("user", "Hello?")
    assert prompts["Bad"] == prompts["Good"] == (hello,)
    assert prompts["Later bad"] == (hello, Message("assistant", "Good"), Message("user", "And then?"))
    assert set(people.judgements.kind.tolist()) == {CHOICE}
    assert people.counts == {"interactions without one chosen reply": 1}
    assert told(read_people(DataConfig(name="prism", path=str(tmp_path)))) == told(people)
    asked = []
    monkeypatch.setattr(prism, "load_hub_rows", lambda *given, **options: asked.append((given[0], options)) or PRISM)
    assert told(read_people(DataConfig(name="prism"))) == told(people)
    assert asked == [("HannahRoseKirk/prism-alignment", {"name": "utterances"})]


def test_mistakes_in_prism(tmp_path):
    with pytest.raises(UserError, match=r"no utterances\.\* in the folder; set data\.path"):
        read_people(DataConfig(name="prism", path=str(tmp_path)))
    path = tmp_path / "utterances.jsonl"
    path.write_text(json.dumps(PRISM[0] | {"if_chosen": "perhaps"}))
    with pytest.raises(UserError, match=":1: if_chosen: must be true or false"):
        read_people(DataConfig(name="prism", path=str(path)))
    path.write_text(json.dumps({"user_id": "u"}))
    with pytest.raises(UserError, match=":1: user_prompt: missing column; there are user_id"):
        read_people(DataConfig(name="prism", path=str(path)))


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared/data")
@pytest.mark.parametrize(
    ("name", "folder", "kind", "people", "items", "judgements"),
    [
        ("polis", "polis/brexit-consensus", VOTE, 201, 50, 4610),
        ("arguments", "arguments", CHOICE, 3786, 970, 60671),
        pytest.param("jester", "jester", RATING, 4000, 100, 289671, marks=pytest.mark.slow),
    ],
)
def test_shared_folders(name, folder, kind, people, items, judgements):
    found = read_people(DataConfig(name=name, path=str(SHARED / folder)))
    assert set(found.judgements.kind.tolist()) == {kind}
    assert (len(found.users), len(found.items), len(found.user)) == (people, items, judgements)
    assert len(found.notes) == 1
    assert set(found.judgements.first.tolist()) <= set(range(items))
