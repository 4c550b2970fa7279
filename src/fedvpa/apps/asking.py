"""`fedvpa ask`: the questions that tell most about a user, as a questionnaire or one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from fedvpa.preferences.examples import Example, Question
from fedvpa.preferences.schema import Prompt
from fedvpa.selector import Selector
from fedvpa.user import User

Answer = Literal["first", "second", "skip", "stop"]
_VOTE: dict[str, Answer] = {"y": "first", "yes": "first", "n": "second", "no": "second"}
_CHOICE: dict[str, Answer] = {"a": "first", "1": "first", "b": "second", "2": "second"}
_ALWAYS: dict[str, Answer] = {"s": "skip", "skip": "skip", "": "skip", "q": "stop", "quit": "stop"}


def questionnaire(selector: Selector, user: User | None, pool: Sequence[Question], n: int) -> list[dict[str, Any]]:
    """The n questions to ask first, as rows with the pool's row (from 1) and the bits expected of the answer."""
    return [
        {"row": ask.row + 1, **as_row(ask.question), "bits": round(ask.bits, 4)}
        for ask in selector.ask_questions(user, pool, n)
    ]


def as_row(question: Question) -> dict[str, Any]:
    """A question in the columns in which it is read."""
    prompt = question.first.prompt
    single = len(prompt) == 1 and prompt[0].role == "user"
    head = {"prompt": prompt[0].content if single else [m._asdict() for m in prompt]}
    if question.second is None:
        return {**head, "text": question.first.text}
    return {**head, "a": question.first.text, "b": question.second.text}


def interview(
    selector: Selector,
    user: User | None,
    pool: Sequence[Question],
    n: int,
    read: Callable[[str], str],
    show: Callable[[str], None],
) -> User:
    """Asks up to n questions, each chosen after the answers before it; `q`, or the end of the input, stops.

    Args:
        user: who is asked; None for somebody new.
        read: shows what may be answered and returns the answer; show: shows a line.

    Returns:
        The user with the answers.

    Raises:
        UserError: a user that cannot be updated, or a selector that cannot use the answers.
    """
    now = selector.known(user)
    if user is not None:
        now = selector.update(now, [])  # says at once where that is not possible
    given: list[Example] = []
    left = list(pool)
    for number in range(1, min(n, len(pool)) + 1):
        ask = selector.ask_questions(now, left, 1)[0]
        del left[ask.row]
        show(f"\n{number}/{min(n, len(pool))} ({ask.bits:.2f} bits)\n{_shown(ask.question)}")
        answer = _answer(ask.question, read, show)
        if answer == "stop":
            break
        if answer == "skip":
            continue
        given.append(ask.question.answered(answer == "first"))
        now = selector.update(now, given[-1:]) if selector.judges else selector.infer(given)
    return now


def _answer(question: Question, read: Callable[[str], str], show: Callable[[str], None]) -> Answer:
    words = (_VOTE if question.second is None else _CHOICE) | _ALWAYS
    prompt = "yes or no" if question.second is None else "a or b"
    letters = "y/n" if question.second is None else "a/b"
    while True:
        try:
            text = read(f"{prompt}? [{letters}/s to skip/q to stop] ")
        except EOFError:
            return "stop"
        if (word := text.strip().lower()) in words:
            return words[word]
        show(f"answer {letters}, s or q")


def _shown(question: Question) -> str:
    head = _dialogue(question.first.prompt)
    if question.second is None:
        return f"{head}\n  {question.first.text}"
    return f"{head}\n  a) {question.first.text}\n  b) {question.second.text}"


def _dialogue(prompt: Prompt) -> str:
    return "\n".join(m.content if len(prompt) == 1 else f"{m.role}: {m.content}" for m in prompt)
