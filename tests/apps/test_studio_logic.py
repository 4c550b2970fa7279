"""The studio's logic, without a page: questions, posteriors, marks, the map, who may see it."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Cli, candidate_lines
from fedvpa import User, UserError
from fedvpa.apps.cli import main
from fedvpa.preferences.schema import Message

pytest.importorskip("gradio", reason="the page's library is missing: pip install -e '.[studio]'")

from fedvpa.apps.studio import judging, page, pieces, serving, teaching
from fedvpa.apps.studio.latent_map import RADIUS, LatentMap
from fedvpa.apps.studio.picture import draw
from fedvpa.apps.studio.teaching import Lesson
from fedvpa.apps.studio.world import World


@pytest.fixture(scope="module")
def world(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tiny run, with more questions than its few unseen pairs."""
    pairs = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    pairs.write_text("\n".join(candidate_lines(12)))
    return World.open(finished, pairs)


def likes(world: World, lesson: Lesson, longer: bool) -> teaching.Choice:
    """What somebody would say who likes longer (or shorter) answers."""
    assert lesson.question is not None
    pair = world.pairs[lesson.question.row]
    first, second = (pair.b, pair.a) if lesson.question.turned else (pair.a, pair.b)
    return "first" if (len(first) > len(second)) == longer else "second"


def taught(world: World, answers: int, longer: bool = True, seed: int = 0) -> Lesson:
    lesson = teaching.begin(world, seed)
    for _ in range(answers):
        lesson = teaching.answer(world, lesson, likes(world, lesson, longer))
    return lesson


# Teach -------------------------------------------------------------------------------------------------------------


def test_questions_come_from_pairs_that_nobody_was_trained_on(finished: Path) -> None:
    from fedvpa.preferences.sources import load_preferences

    world = World.open(finished)
    data = load_preferences(world.selector.info.config)
    trained = {data.pairs[i] for c in data.clients["seen"] for i in c.train.index.tolist()}
    assert world.pairs
    assert not trained & set(world.pairs)


def test_the_ellipse_narrows_with_each_answer(world: World) -> None:
    lesson = taught(world, 5)
    areas = [world.map.ellipse(user).area for user in lesson.trail]
    assert len(areas) == 6
    assert all(later < earlier for earlier, later in pairwise(areas))


def test_opposite_people_end_at_opposite_places(world: World) -> None:
    one, other = taught(world, 1, longer=True), taught(world, 1, longer=False)
    assert one.user.mean == pytest.approx([-m for m in other.user.mean], abs=1e-6)
    assert max(map(abs, one.user.mean)) > 1e-3


def test_the_user_is_the_one_that_personalize_writes(world: World, finished: Path, tmp_path: Path, cli: Cli) -> None:
    lesson = taught(world, 3)
    rows = []
    for pair, y in teaching.labelled(world, lesson):
        chosen, rejected = (pair.a, pair.b) if y > 0 else (pair.b, pair.a)
        rows.append(json.dumps({"prompt": pair.prompt[0].content, "chosen": chosen, "rejected": rejected}))
    (tmp_path / "me.jsonl").write_text("\n".join(rows))
    assert cli("personalize", finished, "--examples", tmp_path / "me.jsonl", "--out", tmp_path / "me.json").code == 0
    theirs, ours = json.loads((tmp_path / "me.json").read_text()), json.loads(teaching.as_json(lesson))
    assert set(ours) == set(theirs)
    assert ours["mean"] == pytest.approx(theirs["mean"], abs=1e-5)
    assert {k: ours[k] for k in ("pairs", "inference", "model_hash")} == {
        k: theirs[k] for k in ("pairs", "inference", "model_hash")
    }


def test_no_pair_is_asked_twice_and_the_end_is_said(world: World) -> None:
    lesson, asked = teaching.begin(world, 0), []
    while lesson.question is not None:
        asked.append(lesson.question.row)
        lesson = teaching.answer(world, lesson, "skip")
    assert sorted(asked) == list(range(len(world.pairs)))
    assert "Every pair of this run has been asked" in pieces.question(world, lesson)[0]
    assert teaching.answer(world, lesson, "first") == lesson


def test_undo_takes_back_answers_and_skips(world: World) -> None:
    before = taught(world, 2)
    for choice in ("first", "skip"):
        assert teaching.undo(teaching.answer(world, before, choice)) == before
    fresh = teaching.begin(world, 0)
    assert teaching.undo(fresh) == fresh
    assert teaching.undo(teaching.undo(before)) == fresh


def test_a_skip_says_nothing_about_the_user(world: World) -> None:
    before = taught(world, 2)
    after = teaching.answer(world, before, "skip")
    assert after.user == before.user
    assert after.question != before.question
    assert "After 2 answers (1 skipped)" in pieces.progress(world, after)


def test_either_answer_may_stand_first(world: World) -> None:
    turned = {q.turned for seed in range(30) if (q := teaching.begin(world, seed).question) is not None}
    assert turned == {True, False}


def test_a_user_is_loaded_and_refused(world: World, tmp_path: Path) -> None:
    text = teaching.as_json(taught(world, 3))
    loaded = teaching.load(world, text)
    assert loaded.user == User.model_validate_json(text)
    assert loaded.question is None
    assert "Start over to teach a new one" in pieces.question(world, loaded)[0]
    assert "After 3 answers" in pieces.progress(world, loaded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_hash": "0" * 64}, "inferred with another model"),
        ({"mean": [0.0], "log_var": [0.0], "particles": None, "weights": None}, "another length"),
        ({"log_var": [1e6] * 4}, "a value beyond 100"),
        ({"pairs": "many"}, "The file: pairs: "),
        (None, "The file: Invalid JSON"),
        ("long", "has more than 1,000,000 characters"),
    ],
)
def test_a_bad_file(world: World, change: Any, message: str) -> None:
    text = teaching.as_json(taught(world, 1))
    if isinstance(change, dict):
        text = json.dumps({**json.loads(text), **change})
    elif change is None:
        text = text[:-9]
    else:
        text += " " * teaching.LARGEST_FILE
    with pytest.raises(UserError, match=message):
        teaching.load(world, text)


# A method that takes judgements ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(judged_run: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    pairs = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    same = [{"prompt": f"Topic {k}?", "a": f"{k}, no.", "b": f"{k}, nay."} for k in range(3)]
    pairs.write_text("\n".join([*map(json.dumps, same), *candidate_lines(3)]))
    return World.open(judged_run, pairs)


def test_it_teaches_a_selector_of_judgements(judged: World) -> None:
    """The first question is one on which people differ, and the answers move the user towards what they like."""
    one, other = taught(judged, 2, longer=True), taught(judged, 2, longer=False)
    first = one.steps[0].question
    assert first.row >= 3
    assert 0 < first.bits <= 1
    scores = [judged.selector.mean_preferences(judged.pairs[3].prompt, ["Yes, with care.", "No."], [u])[0, 0]
              for u in (one.user, other.user)]  # fmt: skip
    assert scores[0] > scores[1]
    assert one.user.posterior is not None
    svg = draw(judged.map, one.trail, judged.prototypes, pieces.progress(judged, one).striptags())
    assert "After 2 answers: nearest to Prototype" in svg
    assert "nan" not in svg
    assert teaching.load(judged, teaching.as_json(one)).user == one.user


# Judge -------------------------------------------------------------------------------------------------------------


def test_marks_are_the_changes_of_rank(world: World) -> None:
    prompt, answers = judging.checked("What now?", ["Yes.", "A long answer with much care, at length.", "Perhaps not."])
    users = [world.selector.blend({k: 1.0}) for k in range(len(world.prototypes))]
    found = judging.judge(world, prompt, answers, users)
    for verdicts, user in zip(found, [world.average, *users], strict=True):
        scores = dict(world.selector.rank("What now?", answers, user))
        assert [v.score for v in verdicts] == pytest.approx([scores[a] for a in answers])
        shown = {a: f"{scores[a]:.0%}" for a in answers}
        for (a, v), (b, w) in pairwise(sorted(zip(answers, verdicts, strict=True), key=lambda e: -scores[e[0]])):
            assert w.rank > v.rank or (w.rank == v.rank and shown[a] == shown[b])
        assert [v.rise for v in verdicts] == [first.rank - v.rank for first, v in zip(found[0], verdicts, strict=True)]
    assert any(v.rise for row in found[1:] for v in row), "no prototype changes any rank"


def test_two_answers_are_a_probability(world: World) -> None:
    prompt, answers = judging.checked("What now?", ["Yes.", "No, not at all."])
    user = world.selector.blend({0: 1.0})
    (_, (a, b)) = judging.judge(world, prompt, answers, [user])
    assert a.score == pytest.approx(world.selector.prefer("What now?", *answers, user))
    assert a.score + b.score == pytest.approx(1)


def test_equal_scores_share_a_rank() -> None:
    assert judging.ranks([0.2, 0.9, 0.9, 0.5]) == [4, 1, 1, 3]
    assert judging.ranks([0.501, 0.499]) == [1, 1]  # both are shown as 50 %


def test_a_changed_rank_is_marked_without_colour() -> None:
    table = pieces.verdicts(["Average user", "You"], ["x", "y"], [
        [judging.Verdict(0.6, 1, 0), judging.Verdict(0.4, 2, 0)],
        [judging.Verdict(0.3, 2, -1), judging.Verdict(0.7, 1, 1)],
    ])  # fmt: skip
    assert table.count("▲1") == table.count("▼1") == 1
    assert "1 place higher than for the average user" in table
    assert "▲1" in table.split(">You</th>")[1]


@pytest.mark.parametrize(
    ("prompt", "answers", "message"),
    [
        ("  ", ["a", "b"], "Prompt: is empty"),
        ("x", ["a", " \n"], "Answer B: is empty; write one, or remove the row"),
        ("x", ["a"], "Answers: 2 are needed to compare; add another one"),
        ("x", ["a", "b", "a "], "Answer C: is the same as answer A"),
        ("x" * 8001, ["a", "b"], "Prompt: has 8,001 characters; shorten it to 8,000"),
        ("x", ["a", "b" * 9000], "Answer B: has 9,000 characters"),
        ("x", ["a", "\ud800"], "Answer B: holds half of a character"),
    ],
)
def test_bad_input_names_the_field(prompt: str, answers: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        judging.checked(prompt, answers)


def test_a_dialogue_is_typed_as_it_is_shown() -> None:
    dialogue = (Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "How are you?"))
    assert judging.prompt_of(judging.text_of(dialogue)) == dialogue
    assert judging.prompt_of("Human resources: what is that?") == (Message("user", "Human resources: what is that?"),)


def test_a_blend_of_one_is_that_prototype(world: World) -> None:
    assert judging.blended(world, [0, 30]).mean == world.selector.blend({1: 1.0}).mean
    halves = judging.blended(world, [10, 10])
    assert halves.mean == pytest.approx(world.selector.blend({0: 0.5, 1: 0.5}).mean)
    with pytest.raises(UserError, match="Blend: all are 0; move at least one up"):
        judging.blended(world, [0, 0])


# The map and the pieces --------------------------------------------------------------------------------------------


def test_the_ellipse_holds_95_per_cent_of_the_posterior() -> None:
    g = np.random.default_rng(0)
    centres = g.normal(size=(6, 5))
    found = LatentMap.of(
        {"latents": {"means": centres.tolist(), "groups": [None] * 6, "populations": ["seen"] * 6}},
        centres[:2].tolist(),
    )
    user = User(mean=g.normal(size=5).tolist(), log_var=g.normal(size=5).tolist(), pairs=1, model_hash="x")
    ellipse = found.ellipse(user)
    z = np.asarray(user.mean) + np.exp(np.asarray(user.log_var) / 2) * g.normal(size=(200_000, 5))
    x = (z - found.origin) @ found.axes.T - np.asarray(ellipse.centre)
    c, s = math.cos(ellipse.angle), math.sin(ellipse.angle)
    turned = x @ np.array([[c, -s], [s, c]])
    inside = (turned / np.asarray(ellipse.radii)) ** 2
    assert (inside.sum(1) < 1).mean() == pytest.approx(0.95, abs=0.003)
    assert turned.std(0) * RADIUS == pytest.approx(list(ellipse.radii), rel=0.01)


def test_the_map_is_the_reports(world: World, finished: Path) -> None:
    from fedvpa.reporting.plots_latent import principal_plane

    latents = json.loads((finished / "results.json").read_text())["diagnostics"]["fedvpa-gp"]["latents"]
    points, _, shares = principal_plane(np.asarray(latents["means"]))
    np.testing.assert_allclose(world.map.users, points, atol=1e-9)
    np.testing.assert_allclose(world.map.shares, shares)
    assert world.map.place(latents["means"][0]) == pytest.approx(tuple(points[0]))


def test_prototypes_are_named_after_their_users(world: World) -> None:
    assert {name.split(" · ")[0] for name in world.prototypes} == {"Prototype 0", "Prototype 1"}
    assert {name.split(" · ")[-1] for name in world.prototypes} <= {"longer", "shorter"}


def test_what_somebody_wrote_is_never_markup() -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    table = pieces.verdicts([evil, "b"], [evil, "y"], [[judging.Verdict(0.6, 1, 0)] * 2] * 2)
    parts = [
        table,
        pieces.dialogue((Message("user", evil),)),
        pieces.written(evil, evil),
        pieces.problem(evil),
        pieces.header(evil, evil, [evil]),
    ]
    for part in parts:
        assert "<script" not in part
        assert "<img" not in part
        assert "&lt;" in part


def test_the_picture_says_what_it_shows(world: World) -> None:
    lesson = taught(world, 2)
    svg = draw(world.map, lesson.trail, world.prototypes, pieces.progress(world, lesson).striptags())
    assert 'role="img"' in svg
    assert "After 2 answers: nearest to Prototype" in svg
    assert svg.count("<ellipse") == 1
    assert "nan" not in svg


# Opening a run -----------------------------------------------------------------------------------------------------


def test_a_bare_selector_is_enough(finished: Path) -> None:
    folder = finished.parent / "bare"  # places in a selector's file are relative to its folder
    folder.mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copy(finished / name, folder / name)
    bare = World.open(folder)
    assert bare.report is None
    assert not len(bare.map.users)
    lesson = taught(bare, 1)
    assert "<ellipse" in draw(bare.map, lesson.trail, bare.prototypes, "")
    assert "fedvpa report" in pieces.report(False)


def test_other_pairs_in_the_place_of_data_that_is_gone(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "r")
    model = json.loads((run / "model.json").read_text())
    model["config"]["data"]["path"] = str(tmp_path / "gone.jsonl")
    (run / "model.json").write_text(json.dumps(model))
    with pytest.raises(UserError, match="name other pairs with --pairs FILE"):
        World.open(run)
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hi", "a": "x", "b": "y"}\n')
    assert [p.a for p in World.open(run, tmp_path / "p.jsonl").pairs] == ["x"]


def test_a_run_without_a_latent(experiment: Path, tmp_path: Path, cli: Cli) -> None:
    assert main(["train", str(experiment), "method.name=fedbt", "--out", str(tmp_path / "bt")]) == 0
    done = cli("studio", tmp_path / "bt", "--port", "0")
    assert done.code == 2
    assert "method.name: fedbt has no latent" in done.err


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path, finished: Path, cli: Cli) -> None:
    assert "no such run" in cli("studio", tmp_path / "none", "--port", "0").err
    open_to_all = cli("studio", finished, "--host", "0.0.0.0")
    assert open_to_all.code == 2
    assert (
        "--host: 0.0.0.0 can be reached by others, and there is no token; give --token (or FEDVPA_TOKEN)"
        in open_to_all.err
    )
    assert "--token: must be 8 printable ASCII characters or more" in cli("studio", finished, "--token", "secret").err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: cannot be used" in cli("studio", finished, "--port", port).err
    assert "fedvpa studio" in cli("studio", "--help").out.split("Examples:")[1]


# Who may see it ----------------------------------------------------------------------------------------------------


def ask(guard: serving.Guard, path: str = "/", query: str = "", **headers: str) -> tuple[int, dict[str, str]]:
    """The status and headers of the answer to one request."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    named = {"host": "localhost:7860", **headers}
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(k.encode(), v.encode()) for k, v in named.items()],
    }
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}


async def _page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"page"})


def test_only_this_machine_without_a_token() -> None:
    guard = serving.Guard(_page, None)
    for host in ("localhost:1", "127.0.0.1", "127.0.0.1:7860", "[::1]:7860"):
        status, headers = ask(guard, host=host)
        assert status == 200
        assert headers["content-security-policy"].startswith("default-src 'self'")
    for host in ("evil.example", "127.0.0.1.evil.example", "", "10.0.0.1:7860", "localhost.evil.example:80"):
        assert ask(guard, host=host)[0] == 403


def test_the_token_opens_every_path_and_nothing_else_does() -> None:
    guard = serving.Guard(_page, "a-long-secret")
    for path in ("/", "/report", "/config", "/gradio_api/queue/join"):
        assert ask(guard, path, host="studio.example")[0] == 401
        assert ask(guard, path, cookie="fedvpa_studio=wrong")[0] == 401
        assert ask(guard, path, cookie='fedvpa_studio="ü\x00; =;;')[0] == 401
    assert ask(guard, "/", "token=wrong")[0] == 401
    assert ask(guard, "/report", "token=a-long-secret")[0] == 401
    status, headers = ask(guard, "/", "token=a-long-secret")
    assert status == 303
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "a-long-secret" not in cookie
    for path in ("/", "/report"):
        assert ask(guard, path, cookie=cookie.split(";")[0], host="studio.example")[0] == 200


def test_nothing_is_uploaded_and_nothing_huge_is_read() -> None:
    guard = serving.Guard(_page, None)
    assert ask(guard, "/gradio_api/upload")[0] == 404
    assert ask(guard, "/gradio_api/proxy=https://example.org/x")[0] == 404
    assert ask(guard, **{"content-length": "9999999"})[0] == 413
    assert ask(guard, **{"content-length": "-1"})[0] == 413


def test_a_page_is_made_without_asking_anybody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: called.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: called.append(a) or [])
    serving.application(world, "run")
    assert called == []


def test_no_event_is_an_open_api(world: World) -> None:
    built = page.build(world, "run")
    assert built.fns
    assert {fn.api_visibility for fn in built.fns.values()} == {"private"}
