"""The studio in a browser: somebody teaches it, switches preferences, errs, uses a phone or only the keyboard.

Pictures of each step go to out/screenshots. The system's Chromium is driven; nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from conftest import candidate_lines

pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install -e '.[test]'")
pytest.importorskip("gradio", reason="the page's library is missing: pip install -e '.[studio]'")

from playwright import sync_api

import studio_pictures
from fedvpa import User
from fedvpa.apps.studio.world import World
from studio_pictures import chromium, running, teach
from tiny_policy import save_random_policy

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium")

SHOTS = Path(__file__).parents[2] / "out" / "screenshots"
DESK, PHONE = (1200, 900), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(candidate_lines(12)))
    return path


@pytest.fixture(scope="module")
def address(finished: Path, pairs: Path) -> Iterator[str]:
    with running(World.open(finished, pairs)) as url:
        yield url


Open = Callable[..., Any]


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Open]:
    """Opens the page in a window of its own; afterwards no request has left for another host, nothing has failed."""
    contexts, elsewhere, errors = [], [], []

    def opened(size: tuple[int, int] = DESK, url: str = address, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        host = urlsplit(url).netloc

        def seen(request: Any) -> None:
            parts = urlsplit(request.url)
            if parts.scheme not in ("data", "blob") and parts.netloc != host:
                elsewhere.append(request.url)

        page.on("request", seen)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        question(page, 1)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert elsewhere == []
    assert errors == []


def question(page: Any, number: int) -> None:
    page.get_by_role("heading", name=f"Question {number}", exact=True).wait_for()


def status(page: Any) -> str:
    """What is read out after each answer."""
    return page.locator("#teach-status[aria-live=polite]").inner_text()


def prefer(page: Any, longer: bool) -> None:
    """Chooses the longer or the shorter of the two answers that are shown."""
    one, two = (page.locator("section.answer p").nth(i).inner_text() for i in (0, 1))
    page.get_by_role("button", name=f"Prefer answer {1 if (len(one) > len(two)) == longer else 2}").click()


def ellipse(page: Any) -> tuple[float, float]:
    found = page.locator(".you ellipse")
    return float(found.get_attribute("rx")), float(found.get_attribute("ry"))


def shot(page: Any, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(300)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def to(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()


def compare(
    page: Any, prompt: str = "What now?", answers: tuple[str, ...] = ("No.", "Yes, with all my heart and at length.")
) -> None:
    """Fills Judge's form and presses the button."""
    page.locator("#prompt textarea").fill(prompt)
    while page.locator("[id^=answer-]:visible").count() < len(answers):
        count = page.locator("[id^=answer-]:visible").count()
        page.get_by_role("button", name="Add an answer").click()
        page.locator(f"#answer-{'ABCDEFGH'[count]}").wait_for()
    for letter, text in zip("ABCDEFGH", answers, strict=False):
        page.locator(f"#answer-{letter} textarea").fill(text)
    page.get_by_role("button", name="Compare").click()


def row(page: Any, name: str) -> list[str]:
    """The cells of a row of Judge's table."""
    found = page.locator("table.verdicts tr", has=page.locator("th", has_text=name)).first
    return found.locator("td").all_inner_texts()


def soon(page: Any, holds: Callable[[], bool]) -> None:
    """Waits until something holds, for at most ten seconds."""
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it does not come about")


def no_sideways_scroll(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_teach_a_user_and_switch_preferences(visit: Open, finished: Path, tmp_path: Path) -> None:
    page = visit()
    assert "Nothing is known of you yet" in status(page)
    areas = [ellipse(page)]
    for n in range(1, 6):
        prefer(page, longer=True)
        question(page, n + 1)
        areas.append(ellipse(page))
    sizes = [a * b for a, b in areas]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]
    assert "After 5 answers" in status(page)
    shot(page, "teach")

    to(page, "Judge")
    compare(page)
    page.locator("table.verdicts").wait_for()
    one, two = row(page, "Prototype 0"), row(page, "Prototype 1")
    assert [c[0] for c in one] != [c[0] for c in two], "the prototypes agree"
    assert any("▲" in c or "▼" in c for c in [*one, *two])
    assert row(page, "You")
    for weights, same in (((100, 0), one), ((0, 100), two)):
        for k, weight in enumerate(weights):
            page.locator(f"#blend-{k} input[type=number]").fill(str(weight))
            page.keyboard.press("Tab")
        soon(page, lambda same=same: row(page, "Blend") == same)
    shot(page, "judge")

    to(page, "Teach")
    with page.expect_download() as started:
        page.get_by_role("button", name="Download me").click()
    assert started.value.suggested_filename == "me.json"
    started.value.save_as(tmp_path / "me.json")
    user = User.load(tmp_path / "me.json")
    assert user.pairs == 5
    page.get_by_role("button", name="Start over").click()
    question(page, 1)
    assert ellipse(page) == areas[0]
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load a user").click()
    chooser.value.set_files(tmp_path / "me.json")
    page.get_by_text("This user came from a file").wait_for()
    assert ellipse(page) == areas[-1]
    (tmp_path / "bad.json").write_text(json.dumps({**user.model_dump(), "model_hash": "0" * 64}))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load a user").click()
    chooser.value.set_files(tmp_path / "bad.json")
    assert "inferred with another model" in page.get_by_role("alert").inner_text()


@pytest.mark.slow
def test_undo_skip_and_the_end(visit: Open) -> None:
    page = visit()
    assert page.get_by_role("button", name="Undo").is_disabled()
    first = page.locator("section.answer").all_inner_texts()
    prefer(page, longer=False)
    question(page, 2)
    page.get_by_role("button", name="Undo").click()
    question(page, 1)
    assert page.locator("section.answer").all_inner_texts() == first
    for n in range(12):
        question(page, n + 1)
        page.get_by_role("button", name="Neither, skip").click()
    page.get_by_text("Every pair of this run has been asked").wait_for()
    assert page.get_by_role("button", name="Prefer answer 1").count() == 0
    shot(page, "teach-end")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "answers", "message"),
    [
        ("", ("a", "b"), "Prompt: is empty; write a question, or pick one above."),
        ("x", ("a", ""), "Answer B: is empty; write one, or remove the row."),
        ("x", ("a", "y" * 50_000), "Answer B: has 50,000 characters; shorten it to 8,000."),
        ("x", ("a", "a"), "Answer B: is the same as answer A; change one of them, or remove the row."),
    ],
)
def test_bad_input_names_the_field_and_the_remedy(
    visit: Open, prompt: str, answers: tuple[str, ...], message: str
) -> None:
    page = visit()
    to(page, "Judge")
    compare(page, prompt, answers)
    assert message in page.get_by_role("alert").inner_text()
    assert page.locator("table.verdicts").count() == 0
    assert "Traceback" not in page.content()
    compare(page)
    page.locator("table.verdicts").wait_for()
    assert page.get_by_role("alert").count() == 0


@pytest.mark.slow
def test_one_answer_only_and_eight(visit: Open) -> None:
    page = visit()
    to(page, "Judge")
    page.get_by_role("button", name="Remove the last").click()
    page.locator("#answer-B").wait_for(state="hidden")
    assert page.get_by_role("button", name="Remove the last").is_disabled()
    page.get_by_role("button", name="Compare").click()
    assert "Answers: 2 are needed to compare; add another one." in page.get_by_role("alert").inner_text()
    shot(page, "judge-problem")
    compare(page, answers=tuple(["one", "two", "three", "four", "five", "six", "seven", "eight"]))
    page.locator("table.verdicts").wait_for()
    assert len(row(page, "Average user")) == 8
    assert page.get_by_role("button", name="Add an answer").is_disabled()


@pytest.mark.slow
def test_all_sliders_down(visit: Open) -> None:
    page = visit()
    to(page, "Judge")
    compare(page)
    page.locator("table.verdicts").wait_for()
    for k in (0, 1):
        page.locator(f"#blend-{k} input[type=number]").fill("0")
        page.keyboard.press("Tab")
    page.get_by_role("alert").wait_for()
    assert "Blend: all are 0; move at least one up." in page.get_by_role("alert").inner_text()


EVIL = '<script>window.hit = 1</script><img src=x onerror="window.hit = 2"> ${window.hit = 3} {{value}} {% x %}'


@pytest.mark.slow
def test_text_is_shown_as_text(visit: Open, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": EVIL, "a": "a " + EVIL, "b": "b " + EVIL}))
    with running(World.open(finished, tmp_path / "p.jsonl"), run=EVIL) as url:
        page = visit(url=url)
        assert page.locator(".prompt p").inner_text() == EVIL
        shown = page.locator("section.answer p").all_inner_texts()
        assert sorted(shown) == ["a " + EVIL, "b " + EVIL]
        to(page, "Judge")
        compare(page, EVIL, (EVIL, EVIL + " more"))
        page.locator("table.verdicts").wait_for()
        assert "<script>window.hit" in page.locator("table.verdicts thead th").nth(1).get_attribute("title")
        assert page.evaluate("window.hit") is None
        assert EVIL in page.title()
        shot(page, "injection")


@pytest.mark.slow
def test_a_long_dialogue_is_shown_from_its_end(visit: Open, finished: Path, tmp_path: Path) -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"Turn {i} of this talk."} for i in range(41)]
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": turns, "a": "Yes.", "b": "No."}))
    with running(World.open(finished, tmp_path / "p.jsonl")) as url:
        page = visit(PHONE, url)
        box = page.get_by_role("region", name="Dialogue").bounding_box()

        def inside(text: str) -> bool:
            place = page.get_by_text(text).bounding_box()
            return box["y"] <= place["y"] and place["y"] + place["height"] <= box["y"] + box["height"]

        assert inside("Turn 40 of this talk.")
        assert not inside("Turn 0 of this talk.")
        page.get_by_role("region", name="Dialogue").focus()
        page.keyboard.press("Home")
        soon(page, lambda: inside("Turn 0 of this talk."))
        shot(page, "phone-dialogue")


@pytest.mark.slow
def test_at_phone_width(visit: Open) -> None:
    page = visit(PHONE)
    assert no_sideways_scroll(page)
    teach(page, 2)
    shot(page, "phone-teach")
    assert no_sideways_scroll(page)
    for name in ("Prefer answer 1", "Neither, skip", "Undo"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE[0]
        assert box["height"] >= 36
    to(page, "Judge")
    compare(page, answers=("No.", "Yes, at length and with care.", "Perhaps", "unbreakable" * 60))
    page.locator("table.verdicts").wait_for()
    assert no_sideways_scroll(page)
    shot(page, "phone-judge")
    for tab in ("Write", "Look"):
        to(page, tab)
        page.wait_for_timeout(500)
        assert no_sideways_scroll(page)
        shot(page, f"phone-{tab.lower()}")


@pytest.mark.slow
def test_keyboard_only(visit: Open) -> None:
    page = visit()
    for n, key in enumerate(("1", "2", "0"), 1):
        page.keyboard.press(key)
        question(page, n + 1)
    assert "After 2 answers (1 skipped)" in status(page)

    def tab_to(name: str) -> Any:
        for _ in range(40):
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            label = focused.get_attribute("aria-label") or focused.inner_text() if focused.count() else ""
            if name in label:
                return focused
        raise AssertionError(f"{name} is not reached with Tab")

    focused = tab_to("Prefer answer 1")
    assert focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    assert float(focused.evaluate("e => parseFloat(getComputedStyle(e).outlineWidth)")) >= 2
    shot(page, "keyboard-focus")
    page.keyboard.press("Enter")
    question(page, 5)
    page.locator("#tabs [role=tab]").first.focus()
    tab_to("Judge")
    page.keyboard.press("Enter")
    page.locator("#prompt textarea").wait_for()
    page.locator("#prompt textarea").focus()
    page.keyboard.type(" 1 or 2?")
    assert page.locator("#prompt textarea").input_value().endswith(" 1 or 2?")
    tab_to("Compare")
    page.keyboard.press("Enter")
    page.locator("table.verdicts").wait_for()
    to(page, "Teach")
    question(page, 5)  # the digits that were typed chose nothing


@pytest.mark.slow
def test_fields_have_labels(visit: Open) -> None:
    page = visit()
    assert page.get_by_role("img", name="Map of users and prototypes").is_visible()
    to(page, "Judge")
    for label in ("Prompt", "Answer A", "Answer B"):
        assert page.get_by_label(label, exact=True).first.is_visible()


@pytest.mark.slow
def test_two_tabs_are_two_users(visit: Open) -> None:
    one, two = visit(), visit()
    teach(one, 3)
    assert "After 3 answers" in status(one)
    question(two, 1)
    assert "Nothing is known of you yet" in status(two)
    prefer(two, longer=True)
    question(two, 2)
    assert "After 1 answer:" in status(two)
    question(one, 4)
    again = one.context.new_page()
    again.goto(one.url)
    question(again, 1)


@pytest.mark.slow
def test_nothing_is_kept(visit: Open) -> None:
    """Gradio records what was entered in the browser, unless told not to; a page that is opened again knows nothing."""
    page = visit()
    teach(page, 2)
    to(page, "Judge")
    compare(page, "a secret question")
    page.locator("table.verdicts").wait_for()
    kept = page.evaluate(
        "async () => JSON.stringify([{...localStorage}, {...sessionStorage},"
        " (await indexedDB.databases()).map(d => d.name)])"
    )
    assert "secret" not in kept
    assert json.loads(kept)[2] == []
    for text in ("Built with Gradio", "Use via API", "Settings"):
        assert page.get_by_text(text).count() == 0
    page.reload()
    question(page, 1)


@pytest.mark.slow
def test_look(visit: Open) -> None:
    page = visit(scheme="dark")
    to(page, "Look")
    report = page.frame_locator("iframe.report")
    report.get_by_role("heading", name="The table").wait_for()
    report.locator("#latents svg").wait_for()
    page.wait_for_function("document.querySelector('iframe.report').clientHeight > 1500")
    shot(page, "look-dark")


@pytest.mark.slow
def test_without_a_policy(visit: Open) -> None:
    page = visit()
    to(page, "Write")
    assert page.get_by_text("fedvpa studio RUN --policy").is_visible()
    assert page.get_by_role("button", name="Write", exact=True).count() == 0
    shot(page, "write-without")


@pytest.mark.slow
def test_write_under_two_latents(visit: Open, finished: Path, pairs: Path, tmp_path: Path) -> None:
    world = World.open(finished, pairs, save_random_policy(finished, tmp_path))
    with running(world) as url:
        page = visit(url=url)
        to(page, "Write")
        page.locator("#write-prompt textarea").fill("What is a fox?")
        page.locator("#go-write").click()
        cards = page.locator("section.answer[aria-label^='For Prototype']")
        sync_api.expect(cards).to_have_count(2)
        one, two = cards.all_inner_texts()
        assert one.startswith("For Prototype 0")
        assert one.partition("\n")[2] != two.partition("\n")[2]
        assert one.partition("\n")[2].strip() == world.policy.generate("What is a fox?", prototype=0).strip()
        shot(page, "write")
        page.locator("#write-prompt textarea").fill("  ")
        page.locator("#go-write").click()
        assert "Prompt: is empty" in page.get_by_role("alert").inner_text()


def test_with_a_token(browser: Any, finished: Path, pairs: Path) -> None:
    with running(World.open(finished, pairs), token="a-long-secret") as url:
        context = browser.new_context()
        page = context.new_page()
        assert page.goto(url).status == 401
        assert page.goto(f"{url}report").status == 401
        page.goto(f"{url}?token=a-long-secret")
        question(page, 1)
        assert "token" not in page.url
        teach(page, 1)
        context.close()


def test_the_docs_pictures_are_small() -> None:
    pictures = list(studio_pictures.DOCS.glob("studio-*.png"))
    assert pictures
    assert all(p.stat().st_size <= studio_pictures.LARGEST for p in pictures)
