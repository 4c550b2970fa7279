"""Teaching: which pair is asked next, and what the answers say. One `Lesson` is one browser tab's state."""

from __future__ import annotations

import json
import math
import secrets
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from pydantic import ValidationError

from fedvpa.apps.studio.world import World
from fedvpa.errors import UserError
from fedvpa.inferring import pair_answers
from fedvpa.preferences.schema import Pair
from fedvpa.preferences.seeding import generator
from fedvpa.user import User
from fedvpa.variational.acquisition import information_gain, next_question

LARGEST_FILE = 1_000_000
"""Characters of a user's file."""

LARGEST_VALUE = 100
"""Of a latent's means and log variances in a file; real ones stay far below."""

Choice = Literal["first", "second", "skip"]


class Question(NamedTuple):
    """A pair as it is shown.

    Attributes:
        row: in `World.pairs`; turned: whether ``b`` is shown first; bits: the information expected from the answer.
    """

    row: int
    turned: bool
    bits: float


class Step(NamedTuple):
    """An answer and the user inferred with it; ``y`` is +1 or -1 as in `Pair`, 0 for a skipped pair."""

    question: Question
    y: int
    user: User


@dataclass(frozen=True)
class Lesson:
    """What one person has answered; held in memory for one tab only.

    Attributes:
        seed: of the samples and of the order in which answers are shown.
        start: the user before the first answer: nobody in particular, or one that was loaded.
        loaded: whether `start` came from a file; it is then complete, and nothing is asked.
        question: the pair that is asked now; None when no pair is left, or for a loaded user.
        steps: the answers so far.
    """

    seed: int
    start: User
    loaded: bool
    question: Question | None
    steps: tuple[Step, ...] = ()

    @property
    def user(self) -> User:
        return self.steps[-1].user if self.steps else self.start

    @property
    def trail(self) -> list[User]:
        """The user before the first and after each answer that was not skipped."""
        return [self.start, *(step.user for step in self.steps if step.y)]


def begin(world: World, seed: int | None = None) -> Lesson:
    """A new lesson with its first question."""
    lesson = Lesson(secrets.randbits(32) if seed is None else seed, world.average, False, None)
    return replace(lesson, question=ask(world, lesson))


def ask(world: World, lesson: Lesson) -> Question | None:
    """The pair with the largest expected information gain under the current posterior, in a random order."""
    g = generator(lesson.seed, "question", len(lesson.steps))
    asked = torch.zeros(len(world.pairs), dtype=torch.bool)
    asked[[step.question.row for step in lesson.steps]] = True
    gain = information_gain(pair_answers(world.predictor, lesson.user, g))
    row = next_question(gain, asked)
    if row is None:
        return None
    turned = bool(torch.rand((), generator=g) < 0.5)
    return Question(row, turned, float(gain[row]) / math.log(2))


def answer(world: World, lesson: Lesson, choice: Choice) -> Lesson:
    """The lesson after an answer, with the next question. Without a question nothing happens."""
    now = lesson.question
    if now is None:
        return lesson
    y = 0 if choice == "skip" else 1 if (choice == "first") != now.turned else -1
    examples = [*labelled(world, lesson), *([(world.pairs[now.row], y)] if y else [])]
    user = world.selector.infer_pairs(examples) if y else lesson.user
    later = replace(lesson, steps=(*lesson.steps, Step(now, y, user)), question=None)
    return replace(later, question=ask(world, later))


def undo(lesson: Lesson) -> Lesson:
    """The lesson before the last answer (or skip), with the same question."""
    if not lesson.steps:
        return lesson
    return replace(lesson, question=lesson.steps[-1].question, steps=lesson.steps[:-1])


def labelled(world: World, lesson: Lesson) -> list[tuple[Pair, int]]:
    """The answers as `Selector.infer_pairs` takes them."""
    return [(world.pairs[step.question.row], step.y) for step in lesson.steps if step.y]


def as_json(lesson: Lesson) -> str:
    """The user as `fedvpa personalize` writes it. No text and no answer is in it."""
    return json.dumps(lesson.user.model_dump(exclude_none=True), indent=1) + "\n"


def load(world: World, text: str) -> Lesson:
    """A lesson that shows the user of a file of `fedvpa personalize`, or of the page's download.

    Raises:
        UserError: not a user's file, or a user of another model.
    """
    remedy = "choose a file of `fedvpa personalize` or of “Download me”"
    if len(text) > LARGEST_FILE:
        raise UserError(f"has more than {LARGEST_FILE:,} characters", remedy, field="The file")
    try:
        user = User.model_validate_json(text)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{place}: {first['msg']}" if place else first["msg"], remedy, field="The file") from None
    world.selector.known(user)
    if len(user.mean) != len(world.average.mean):
        raise UserError("mean has another length than the run's latent", remedy, field="The file")
    if max(map(abs, [*user.mean, *user.log_var])) > LARGEST_VALUE:
        raise UserError(f"mean or log_var holds a value beyond {LARGEST_VALUE}", remedy, field="The file")
    return Lesson(0, user, True, None)
