"""The page: four tabs on one `World`. Every event takes and returns plain values; the logic stands beside.

Nothing that somebody answers or types is kept but in the tab's own state: there is no upload, no file is written, and
Gradio's history of runs is off (`serving`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import gradio as gr
from markupsafe import Markup

from fedvpa.apps.studio import judging, pieces, teaching
from fedvpa.apps.studio.judging import FEWEST, LETTERS, MOST
from fedvpa.apps.studio.picture import draw
from fedvpa.apps.studio.teaching import Choice, Lesson
from fedvpa.apps.studio.world import World
from fedvpa.errors import UserError
from fedvpa.user import User

SAVE = """(text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "me.json";
  link.click();
  URL.revokeObjectURL(link.href);
}"""

PICK = """() => new Promise((resolve) => {
  const input = Object.assign(document.createElement("input"), {type: "file", accept: ".json,application/json"});
  input.id = "picked-user";
  input.addEventListener("cancel", () => resolve([""]));
  input.addEventListener("change", async () => {
    const file = input.files[0];
    resolve([file.size > 2000000 ? "x".repeat(1000001) : await file.text()]);
  });
  input.click();
})"""

WAITING = "Loading …"
NOBODY, YOU, BLEND = "Average user", "You", "Blend"


class _Quiet(TypedDict):
    show_progress: Any
    api_visibility: Any
    concurrency_id: str


_QUIET: _Quiet = {"show_progress": "hidden", "api_visibility": "private", "concurrency_id": "selector"}


def build(world: World, run: str) -> gr.Blocks:
    """The page of a run.

    Args:
        run: the run's name, shown at the top.
    """
    with gr.Blocks(title=f"fedvpa studio: {run}", analytics_enabled=False) as page:
        lesson = gr.State(None, time_to_live=24 * 3600)
        gr.HTML(pieces.header(run, world.selector.info.method, world.notes))
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Teach", id="teach"):
                _teach(world, page, lesson)
            with gr.Tab("Judge", id="judge") as tab:
                sliders = _judge(world, tab, lesson)
            with gr.Tab("Write", id="write"):
                _write(world, lesson, sliders)
            with gr.Tab("Look", id="look"):
                gr.HTML(pieces.lead("The report of this run: how well its selector does, and what it has learned."))
                gr.HTML(pieces.report(world.report is not None))
    page.queue(default_concurrency_limit=1, max_size=64)
    return page


def _teach(world: World, page: gr.Blocks, lesson: gr.State) -> None:
    gr.HTML(
        pieces.lead(
            "Say which answer you like better. Each question is the one whose answer is expected to tell most about "
            "you; the map shows what is known of you after it."
        )
    )
    with gr.Row(elem_id="teach"):
        with gr.Column(scale=6, min_width=300):
            head = gr.HTML(pieces.empty(WAITING))
            with gr.Row(elem_id="answers", equal_height=True):
                with gr.Column(min_width=220) as left:
                    one = gr.HTML("")
                    first = gr.Button("Prefer answer 1", variant="primary", elem_id="choose-first")
                with gr.Column(min_width=220) as right:
                    two = gr.HTML("")
                    second = gr.Button("Prefer answer 2", variant="primary", elem_id="choose-second")
            gain = gr.HTML("")
            with gr.Row(elem_classes="tools"):
                skip = gr.Button("Neither, skip", size="sm", elem_id="choose-skip", min_width=90)
                undo = gr.Button("Undo", size="sm", elem_id="undo", min_width=90)
                over = gr.Button("Start over", size="sm", elem_id="start-over", min_width=90)
            gr.HTML('<p class="soft keys">Keys: <kbd>1</kbd> and <kbd>2</kbd> choose, <kbd>0</kbd> skips.</p>')
        with gr.Column(scale=5, min_width=300):
            status = gr.HTML(pieces.empty(WAITING), elem_id="teach-status")
            picture = gr.HTML("")
            with gr.Row(elem_classes="tools"):
                save = gr.Button("Download me", size="sm", elem_id="download", min_width=90)
                load = gr.Button("Load a user", size="sm", elem_id="load", min_width=90)
            gr.HTML(
                '<p class="soft">Your answers stay in this tab and are gone when it is closed. The file holds your '
                "latent, as <code>fedvpa personalize</code> writes it, and none of the texts.</p>"
            )
            trouble = gr.HTML("")
            text = gr.Textbox(visible="hidden", elem_id="user-json")
    shown = [lesson, head, one, two, gain, status, picture, first, second, skip, undo, left, right, trouble]

    def show(state: Lesson) -> tuple[Any, ...]:
        question, a, b = pieces.question(world, state)
        known = pieces.progress(world, state)
        asks = state.question is not None
        return (
            state,
            question,
            a,
            b,
            pieces.gain(state),
            known,
            draw(world.map, state.trail, world.prototypes, known.striptags()),
            *(gr.update(interactive=asks) for _ in (first, second, skip)),
            gr.update(interactive=bool(state.steps)),
            *(gr.update(visible=asks) for _ in (left, right)),
            "",
        )

    def choose(choice: Choice, state: Lesson | None) -> tuple[Any, ...]:
        return show(teaching.answer(world, state or teaching.begin(world), choice))

    def take(given: str, state: Lesson | None) -> tuple[Any, ...]:
        now = state or teaching.begin(world)
        if not given:
            return show(now)
        try:
            return show(teaching.load(world, given))
        except UserError as e:
            return (*show(now)[:-1], pieces.problem(str(e)))

    page.load(lambda: show(teaching.begin(world)), None, shown, **_QUIET)
    first.click(lambda s: choose("first", s), lesson, shown, **_QUIET)
    second.click(lambda s: choose("second", s), lesson, shown, **_QUIET)
    skip.click(lambda s: choose("skip", s), lesson, shown, **_QUIET)
    undo.click(lambda s: show(teaching.undo(s or teaching.begin(world))), lesson, shown, **_QUIET)
    over.click(lambda: show(teaching.begin(world)), None, shown, **_QUIET)
    save.click(lambda s: teaching.as_json(s or teaching.begin(world)), lesson, text, **_QUIET).then(
        None, text, None, js=SAVE, **_QUIET
    )
    load.click(None, None, text, js=PICK, **_QUIET).then(take, [text, lesson], shown, **_QUIET)


def _judge(world: World, tab: gr.Tab, lesson: gr.State) -> list[gr.Slider]:
    gr.HTML(
        pieces.lead(
            "The same answers under several preferences: only the latent differs from row to row. Move the "
            "sliders to blend prototypes."
        )
    )
    examples = [(judging.text_of(prompt), answers) for prompt, answers in world.examples]
    count, judged = gr.State(len(examples[0][1])), gr.State(None)
    with gr.Row(elem_id="judge"):
        with gr.Column(scale=5, min_width=300):
            choices = [(" ".join(text.split())[:80], i) for i, (text, _) in enumerate(examples)]
            pick = gr.Dropdown(choices, value=0, label="Pick a prompt of this run", filterable=False, elem_id="pick")
            prompt = gr.Textbox(examples[0][0], lines=2, max_lines=8, label="Prompt", elem_id="prompt")
            boxes = [
                gr.Textbox(
                    examples[0][1][i] if i < len(examples[0][1]) else "",
                    lines=2,
                    max_lines=8,
                    label=f"Answer {letter}",
                    visible=i < len(examples[0][1]),
                    elem_id=f"answer-{letter}",
                )
                for i, letter in enumerate(LETTERS)
            ]
            with gr.Row(elem_classes="tools"):
                add = gr.Button("Add an answer", size="sm", elem_id="add", min_width=90)
                drop = gr.Button("Remove the last", size="sm", elem_id="drop", min_width=90)
            go = gr.Button("Compare", variant="primary", elem_id="compare")
        with gr.Column(scale=6, min_width=300):
            table = gr.HTML(pieces.empty("Press “Compare” to see how the answers rank."), elem_id="verdicts")
            gr.HTML('<h3 class="blend">Blend of prototypes</h3>')
            sliders = [
                gr.Slider(0, 100, 50 if k < 2 else 0, step=5, buttons=[], label=name, elem_id=f"blend-{k}")
                for k, name in enumerate(world.prototypes)
            ]

    def rows(n: int, texts: Sequence[str | None] | None = None) -> tuple[Any, ...]:
        """Shows n rows, with other texts where some are given."""
        fill = [gr.update(visible=i < n, **({} if texts is None else {"value": texts[i]})) for i in range(MOST)]
        return n, *fill, gr.update(interactive=n < MOST), gr.update(interactive=n > 1)

    def picked(i: int) -> tuple[Any, ...]:
        text, answers = examples[i]
        return text, *rows(len(answers), [*answers, *[""] * (MOST - len(answers))])

    def fewer(n: int, *texts: str) -> tuple[Any, ...]:
        return rows(n - 1, [t if i < n - 1 else "" for i, t in enumerate(texts)])

    def compare(state: Lesson | None, n: int, text: str, *rest: Any) -> tuple[Any, Any]:
        try:
            asked = judging.checked(text, rest[:n])
            return asked, verdicts(state, asked, rest[MOST:])
        except UserError as e:
            return None, pieces.problem(str(e))

    def again(state: Lesson | None, asked: Any, *weights: float) -> Any:
        if asked is None:
            return gr.skip()
        try:
            return verdicts(state, asked, weights)
        except UserError as e:
            return pieces.problem(str(e))

    def verdicts(state: Lesson | None, asked: Any, weights: Sequence[float]) -> str:
        heads, users = latents(world, state, weights)
        dialogue, answers = asked
        found = judging.judge(world, dialogue, answers, users)
        if not (state and state.user.pairs):
            found = [found[0], *found[2:]]
            heads = [heads[0], *heads[2:]]
            hint = pieces.empty("Teach first to see a row of your own.")
        else:
            hint = Markup("")
        return pieces.verdicts(heads, answers, found) + hint

    layout = [count, *boxes, add, drop]
    pick.input(picked, pick, [prompt, *layout], **_QUIET)
    add.click(lambda n: rows(n + 1), count, layout, **_QUIET)
    drop.click(fewer, [count, *boxes], layout, **_QUIET)
    shown = {**_QUIET, "show_progress": "minimal"}
    gr.on([go.click, prompt.submit], compare, [lesson, count, prompt, *boxes, *sliders], [judged, table], **shown)
    for slider in sliders:
        slider.change(again, [lesson, judged, *sliders], table, trigger_mode="always_last", **_QUIET)
    tab.select(again, [lesson, judged, *sliders], table, **_QUIET)
    assert len(examples[0][1]) >= FEWEST
    return sliders


def latents(world: World, state: Lesson | None, weights: Sequence[float]) -> tuple[list[str], list[User]]:
    """Whom answers are judged for: names (the average user's first) and the users behind all but the first."""
    me = world.average if state is None else state.user
    pure = [world.selector.blend({k: 1.0}) for k in range(len(world.prototypes))]
    return [NOBODY, YOU, *world.prototypes, BLEND], [me, *pure, judging.blended(world, weights)]


def _write(world: World, lesson: gr.State, sliders: Sequence[gr.Slider]) -> None:
    gr.HTML(pieces.lead("One language model answers one prompt under two latents, with the same random numbers."))
    if world.policy is None:
        gr.HTML(
            '<div class="empty"><p>This studio was started without a policy. Align one with the run’s selector, then '
            "start the studio with it:</p><pre><code>fedvpa align RUN --config configs/align-attributes.yaml --out "
            "runs/aligned\nfedvpa studio RUN --policy runs/aligned</code></pre></div>"
        )
        return
    from fedvpa.apps.studio.writing import write

    policy, names = world.policy, [NOBODY, YOU, *world.prototypes, BLEND]
    prompt = gr.Textbox(
        judging.text_of(world.examples[0][0]), lines=2, max_lines=8, label="Prompt", elem_id="write-prompt"
    )
    with gr.Row():
        one = gr.Dropdown(names, value=names[2], label="First latent", filterable=False, elem_id="first-latent")
        two = gr.Dropdown(names, value=names[-2], label="Second latent", filterable=False, elem_id="second-latent")
        seed = gr.Slider(0, 99, 0, step=1, buttons=[], label="Seed", elem_id="seed")
    go = gr.Button("Write", variant="primary", elem_id="go-write")
    with gr.Row():
        left, right = (gr.HTML(pieces.empty(f"The {n} answer comes here."), min_width=260) for n in ("first", "second"))

    def answers(state: Lesson | None, text: str, a: str, b: str, number: int, *weights: float) -> Iterator[Any]:
        yield pieces.empty("Writing …"), pieces.empty("Waiting …")
        try:
            users = dict(zip(names, [world.average, *latents(world, state, weights)[1]], strict=True))
            texts = write(policy, text, [users[a], users[b]], int(number))
            first = pieces.written(a, next(texts))
            yield first, pieces.empty("Writing …")
            yield first, pieces.written(b, next(texts))
        except UserError as e:
            yield pieces.problem(str(e)), ""

    go.click(answers, [lesson, prompt, one, two, seed, *sliders], [left, right], **_QUIET)
