"""One rule for what of a dialogue stands where: a prompt that stands in its own column, again at the head of the
responses, or there only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedvpa.errors import UserError
from fedvpa.preferences.dialogues import messages_of, parse_loosely, prompt_of_text, unpacked
from fedvpa.preferences.lines import Row, checked_text, type_name
from fedvpa.preferences.schema import Message, Prompt

REPEATED = "rows whose responses repeat the prompt, which is taken off"
IMPLICIT = "rows without a prompt, which is what their responses begin with"
HH = "rows of HH text, read as turns"
FOUND = (REPEATED, IMPLICIT, HH)
"""What `dialogue_of` counts."""
_AGREE = "leave out the column of the prompt, or make both agree"


class Dialogue(NamedTuple):
    """A dialogue that ends before the responses (None: none is given), and the responses to it."""

    prompt: Prompt | None
    responses: tuple[str, ...]


def dialogue_of(row: Row, fields: Sequence[str], path: Path, line: int, counts: Counter[str] | None = None) -> Dialogue:
    """The prompt of a row and the responses in its columns `fields`, each of them text or messages.

    Where the responses repeat the prompt it is taken off: as turns (messages, or HH text) before the last one, with or
    without system turns; or, of two or more texts, as words that all of them begin with, whatever the white space.
    Without a prompt it is the turns before the response, or (of two or more texts) what all of them begin with.

    Args:
        counts: raised by one for each of `FOUND` that applies.

    Raises:
        UserError: a missing column, neither text nor messages, responses to different dialogues, or a prompt that the
            turns before the responses do not repeat, although they begin anew.
    """
    counts = Counter() if counts is None else counts
    for field in fields:
        if field not in row:
            raise UserError("missing column", f"give every row a {field!r}", file=path, line=line, field=field)
    values = [unpacked(row[field], field, path, line) for field in fields]
    given = None if row.get("prompt") is None else read_prompt(row["prompt"], path, line)
    texts = [isinstance(value, str) for value in values]
    if len(set(texts)) > 1:
        problem = f"is {type_name(values[1])}, but {fields[0]} is {type_name(values[0])}"
        raise UserError(problem, "make both texts or both lists of messages", file=path, line=line, field=fields[1])
    if not texts[0]:
        return _of_messages(given, values, fields, path, line, counts)
    checked = [checked_text(value, field, path, line) for value, field in zip(values, fields, strict=True)]
    if all(turns := [parse_loosely(text) for text in checked]):
        counts[HH] += 1
        heads, last = zip(*[turn for turn in turns if turn], strict=True)
        for field, text in zip(fields, last, strict=True):
            checked_text(text, field, path, line)
        return Dialogue(_one_head(given, heads, fields, path, line, counts), last)
    if given is not None:
        return Dialogue(given, _without_words(row["prompt"], given, checked, counts))
    return _with_shared_words(checked, fields, path, line, counts)


def read_prompt(value: Any, path: Path, line: int) -> Prompt:
    """A prompt that is text, a list of turns, or such a list as JSON text."""
    value = unpacked(value, "prompt", path, line)
    if not isinstance(value, list):
        return prompt_of_text(checked_text(value, "prompt", path, line))
    return messages_of(value, "prompt", path, line)


def joined(prompt: Prompt, head: Prompt) -> Prompt | None:
    """A prompt and the turns before a response, which may repeat it, whatever the white space.

    They repeat it if they begin with it, or (a prompt without answers) if they end with it. System turns of the head
    count before those of the prompt. None: the head begins anew and does not repeat the prompt.
    """
    given, own = _without_system(prompt), _without_system(head)
    system = head[: len(head) - len(own)] or prompt[: len(prompt) - len(given)]
    if not own:
        return system + given
    if _same(own[: len(given)], given) or (len(given) == 1 and _same(own[-1:], given)):
        return system + own
    if own[0].role == "user" and given and given[-1].role == "user":
        return None
    return prompt + head


def _of_messages(
    given: Prompt | None, values: Sequence[Any], fields: Sequence[str], path: Path, line: int, counts: Counter[str]
) -> Dialogue:
    heads, responses = [], []
    for value, field in zip(values, fields, strict=True):
        *head, last = messages_of([value] if isinstance(value, dict) else value, field, path, line)
        if last.role != "assistant":
            problem = f"ends in a turn of {last.role!r}, not of the assistant"
            raise UserError(problem, "end it in the response", file=path, line=line, field=field)
        heads.append(tuple(head))
        responses.append(last.content)
    return Dialogue(_one_head(given, heads, fields, path, line, counts), tuple(responses))


def _one_head(
    given: Prompt | None, heads: Sequence[Prompt], fields: Sequence[str], path: Path, line: int, counts: Counter[str]
) -> Prompt | None:
    """The dialogue of a prompt and what stands before each response."""
    for head, field in zip(heads[1:], fields[1:], strict=True):
        if not _same(head, heads[0]):
            problem = f"differs from {fields[0]} before the last assistant turn"
            raise UserError(problem, "compare responses to one prompt", file=path, line=line, field=field)
    if given is None or not heads[0]:
        counts[IMPLICIT] += bool(given is None and heads[0])
        return given or heads[0] or None
    found = joined(given, heads[0])
    if found is None:
        problem = "has turns before the response that are not the prompt's"
        raise UserError(problem, _AGREE, file=path, line=line, field=fields[0])
    counts[REPEATED] += len(found) < len(given) + len(heads[0]) and any(m.role == "user" for m in heads[0])
    return found


def _without_words(raw: Any, given: Prompt, texts: Sequence[str], counts: Counter[str]) -> tuple[str, ...]:
    """The texts without the words of the prompt (or of its last turn), where all of them begin with these."""
    last = given[-1].content if given[-1].role == "user" else ""
    for words in (raw if isinstance(raw, str) else "", last) if len(texts) > 1 else ():
        if not (parts := words.split()):
            continue
        pattern = re.compile(r"\s*" + r"\s+".join(map(re.escape, parts)))
        ends = [match.end() for text in texts if (match := pattern.match(text))]
        if len(ends) == len(texts) and all(map(_goes_on, texts, ends)):
            counts[REPEATED] += 1
            return tuple(text[end:].strip() for text, end in zip(texts, ends, strict=True))
    return tuple(texts)


def _goes_on(text: str, end: int) -> bool:
    """Whether a response follows: behind a white space, or behind the end of a sentence."""
    rest = text[end:]
    return bool(rest.strip()) and (rest[0].isspace() or text[end - 1] in "?!.:…。？！：")


def _with_shared_words(
    texts: Sequence[str], fields: Sequence[str], path: Path, line: int, counts: Counter[str]
) -> Dialogue:
    """Responses without a prompt; of two the prompt is what both begin with."""
    if len(texts) == 1:
        return Dialogue(None, tuple(texts))
    one, two = texts
    if one == two:
        raise UserError(f"equals {fields[0]}", "remove the row", file=path, line=line, field=fields[1])
    shared = _shared_prefix(one, two)
    rests = one[len(shared) :], two[len(shared) :]
    if not shared.strip():
        raise no_prompt(fields, path, line)
    if any(mark in shared for mark in ("\n\nHuman:", "\n\nAssistant:")):
        problem = f"differs from {fields[0]} before the last assistant turn"
        raise UserError(problem, "compare responses to one prompt", file=path, line=line, field=fields[1])
    counts[IMPLICIT] += 1
    for field, rest in zip(fields, rests, strict=True):
        checked_text(rest, field, path, line)
    return Dialogue((Message("user", shared.strip()),), rests)


def no_prompt(fields: Sequence[str], path: Path, line: int) -> UserError:
    problem = f"missing column, and {fields[0]} and {fields[1]} do not begin with the same prompt"
    return UserError(problem, "give every row a 'prompt'", file=path, line=line, field="prompt")


def _shared_prefix(one: str, two: str) -> str:
    """What both texts begin with, up to the end of a word."""
    n = next((i for i, (c, d) in enumerate(zip(one, two, strict=False)) if c != d), min(len(one), len(two)))
    if n == len(one) or n == len(two):
        n -= 1  # one text begins with the whole other one: its last word is the response
    while n > 0 and not one[n - 1].isspace():
        n -= 1
    return one[:n]


def _without_system(turns: Prompt) -> Prompt:
    start = next((i for i, m in enumerate(turns) if m.role != "system"), len(turns))
    return turns[start:]


def _same(one: Prompt, two: Prompt) -> bool:
    """Whether the turns are equal but for white space."""
    return [(m.role, m.content.split()) for m in one] == [(m.role, m.content.split()) for m in two]
