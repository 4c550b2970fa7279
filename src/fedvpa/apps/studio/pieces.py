"""The page's pieces as HTML. Whatever somebody wrote goes through `Markup.format`, which escapes it."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fedvpa.apps.studio.judging import LETTERS, Verdict
from fedvpa.apps.studio.teaching import Lesson
from fedvpa.apps.studio.world import World
from fedvpa.preferences.schema import Prompt

SNIPPET = 90
"""Characters of an answer in the head of Judge's table."""

_ROLES = {"user": "Human", "assistant": "Assistant", "system": "System"}


def header(run: str, method: str, notes: Sequence[str]) -> Markup:
    """The page's head: what is looked at, and what must be kept in mind about the data."""
    kept = Markup("").join(Markup("<p>{}</p>").format(note) for note in notes)
    aside = Markup('<aside class="note" aria-label="About the data">{}</aside>').format(kept) if notes else Markup("")
    return Markup('<header><h1>Preference studio</h1><p class="soft">{} · {}</p>{}</header>').format(run, method, aside)


def lead(text: str) -> Markup:
    """The sentence that says what one is looking at."""
    return Markup('<p class="lead">{}</p>').format(text)


def problem(text: str) -> Markup:
    """What is wrong and what to do; read out at once."""
    return Markup('<p class="problem" role="alert"><strong>Not done.</strong> {}</p>').format(_sentence(text))


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def empty(text: str) -> Markup:
    return Markup('<p class="empty">{}</p>').format(text)


def dialogue(prompt: Prompt) -> Markup:
    """A prompt; one with several turns names who speaks, and a long one begins at its end: that is what is answered."""
    if len(prompt) == 1:
        return Markup('<div class="prompt"><p>{}</p></div>').format(prompt[0].content)
    turns = Markup("").join(
        Markup('<p><span class="role">{}</span>{}</p>').format(_ROLES[m.role], m.content) for m in prompt
    )
    return Markup(
        '<div class="prompt turns" role="region" aria-label="Dialogue" tabindex="0"><div>{}</div></div>'
    ).format(turns)


def question(world: World, lesson: Lesson) -> tuple[Markup, Markup, Markup]:
    """The prompt and the two answers in the order shown."""
    if lesson.question is None:
        text = (
            "This user came from a file and is complete. Start over to teach a new one."
            if lesson.loaded
            else "Every pair of this run has been asked. Download yourself, or start over."
        )
        return empty(text), Markup(""), Markup("")
    pair = world.pairs[lesson.question.row]
    shown = (pair.b, pair.a) if lesson.question.turned else (pair.a, pair.b)
    head = Markup('<h2 class="count">Question {}</h2>{}').format(len(lesson.steps) + 1, dialogue(pair.prompt))
    cards = [
        Markup('<section class="answer" aria-label="Answer {}"><h3>Answer {}</h3><p>{}</p></section>').format(
            i, i, text
        )
        for i, text in enumerate(shown, 1)
    ]
    return head, cards[0], cards[1]


def progress(world: World, lesson: Lesson) -> Markup:
    """What the answers have shown so far; where it stands is read out when it changes (`studio.js`)."""
    user, given = lesson.user, len(lesson.trail) - 1
    if not given and not lesson.loaded:
        start = "Nothing is known of you yet: you stand where everybody starts, and the ellipse is as wide as it gets."
        return _status(start)
    near, share = nearest(world, lesson)
    area = world.map.ellipse(user).area / world.map.ellipse(world.average).area
    known = f"{user.pairs} answer{'' if user.pairs == 1 else 's'}"
    skipped = len(lesson.steps) - given
    text = f"After {known}{f' ({skipped} skipped)' if skipped else ''}: nearest to {near}"
    text += f", weight {share:.0%}" if share is not None else ""
    return _status(f"{text}. The ellipse has {area:.0%} of the area it started with.")


def _status(text: str) -> Markup:
    return Markup('<p class="status">{}</p>').format(text)


def nearest(world: World, lesson: Lesson) -> tuple[str, float | None]:
    """The prototype that a user is most like, and its weight where the user's inference weighs prototypes."""
    user, names = lesson.user, world.prototypes
    if user.weights is not None and len(user.weights) == len(names):
        best = max(range(len(names)), key=user.weights.__getitem__)
        return names[best], user.weights[best]
    centres = world.selector.centres.tolist()
    distances = [sum((a - b) ** 2 for a, b in zip(user.mean, centre, strict=True)) for centre in centres]
    return names[min(range(len(names)), key=distances.__getitem__)], None


def gain(lesson: Lesson) -> Markup:
    """How much the answer is expected to tell."""
    if lesson.question is None:
        return Markup("")
    return Markup('<p class="soft">Expected to tell {} bits about you.</p>').format(f"{lesson.question.bits:.2f}")


def verdicts(names: Sequence[str], answers: Sequence[str], found: Sequence[Sequence[Verdict]]) -> Markup:
    """The table of Judge: a row per latent, the average user's first, and a column per answer.

    Args:
        names: of the rows; found: per row a verdict per answer (`judging.judge`).
    """
    column = Markup('<th scope="col" title="{1}">{0}<span class="unseen">: {1}</span></th>')
    head = Markup("").join(column.format(LETTERS[i], _snippet(text)) for i, text in enumerate(answers))
    line = Markup('<tr><th scope="row">{}</th>{}</tr>')
    rows = Markup("").join(
        line.format(name, Markup("").join(_cell(verdict) for verdict in row))
        for name, row in zip(names, found, strict=True)
    )
    what = "probability to be preferred" if len(answers) == 2 else "mean probability to be preferred to another answer"
    caption = f"Rank of each answer and {what}. ▲ and ▼: places higher or lower than for the average user."
    return Markup(
        '<p class="soft" id="verdicts-caption">{}</p>'
        '<div class="scroll" role="region" aria-labelledby="verdicts-caption" tabindex="0"><table class="verdicts">'
        '<thead><tr><th scope="col">For</th>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(caption, head, rows)


def _snippet(text: str) -> str:
    short = " ".join(text.split())
    return short if len(short) <= SNIPPET else short[:SNIPPET].rsplit(" ", 1)[0][:SNIPPET] + " …"


def _cell(verdict: Verdict) -> Markup:
    mark, style = Markup(""), "first" if verdict.rank == 1 else ""
    if verdict.rise:
        up = verdict.rise > 0
        places = f"{abs(verdict.rise)} place{'' if abs(verdict.rise) == 1 else 's'} {'higher' if up else 'lower'}"
        mark = Markup(
            '<span class="mark" title="{0} than for the average user"><span aria-hidden="true">{1}{2}</span>'
            '<span class="unseen">, {0}</span></span>'
        ).format(places, "▲" if up else "▼", abs(verdict.rise))
        style += " changed"
    return Markup('<td class="{}"><b>{}</b> {}<span class="share">{}</span></td>').format(
        style.strip(), verdict.rank, mark, f"{verdict.score:.0%}"
    )


def written(who: str, text: str) -> Markup:
    """A policy's answer."""
    body = Markup("<p>{}</p>").format(text) if text else empty("The policy wrote nothing.")
    return Markup('<section class="answer" aria-label="For {0}"><h3>For {0}</h3>{1}</section>').format(who, body)


def report(there: bool) -> Markup:
    """The run's report inside the page, or how to make it."""
    if not there:
        return empty("This folder has no report. `fedvpa report RUN` writes it.")
    return Markup(
        '<p class="alone"><a href="report" target="_blank" rel="noopener">Open the report by itself</a></p>'
        '<iframe class="report" src="report" title="The run\'s report: table and figures" loading="lazy"></iframe>'
    )
