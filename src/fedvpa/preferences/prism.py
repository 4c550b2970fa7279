"""PRISM (Kirk et al. 2024, arXiv 2404.16019): people who choose the best of several models' replies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedvpa.errors import UserError
from fedvpa.preferences.cells import by_role, name_of, number_of, truth_of
from fedvpa.preferences.collecting import Judgement, people_of
from fedvpa.preferences.hub import is_hub_id, load_hub_rows
from fedvpa.preferences.lines import OnInvalid, Row, text_field
from fedvpa.preferences.people import PeopleTable
from fedvpa.preferences.schema import Item, Message, Prompt
from fedvpa.preferences.tables import Table, is_dataset_folder, read_table, table_rows

HUB_ID = "HannahRoseKirk/prism-alignment"
ATTRIBUTION = (
    "PRISM: Kirk et al., NeurIPS 2024, arXiv 2404.16019; people's texts are under CC BY 4.0, models' replies under "
    "CC BY-NC 4.0."
)
_COLUMNS = ("user_id", "user_prompt", "model_response", "if_chosen", "interaction_id")
_REMEDY = f"set data.path to PRISM's utterances (a file, or a folder with utterances.jsonl), or to {HUB_ID}"


class _Reply(NamedTuple):
    user: str
    dialogue: str
    interaction: str
    turn: int
    prompt: str
    text: str
    chosen: bool


def read(path: Path, on_invalid: OnInvalid) -> PeopleTable:
    """Each interaction's chosen reply against each reply that was not chosen, one choice for each of the latter.

    The prompt is the dialogue so far: earlier turns with their chosen replies, as the person saw them. Replies are
    compared as they were written. Left out and counted: interactions without exactly one chosen reply.

    Raises:
        UserError: data that cannot be found or read, a missing column, or an invalid row.
    """
    counts: Counter[str] = Counter()
    table = _table(path)
    for name in _COLUMNS:
        if name not in table.columns:
            problem = f"missing column; there are {', '.join(table.columns)}"
            raise UserError(problem, _REMEDY, file=table.path, line=1, field=name)
    replies = table_rows(table, by_role(_reply, {n: n for n in table.columns}, table.typed), on_invalid, counts)
    dialogues: dict[tuple[str, str], list[_Reply]] = defaultdict(list)
    for reply in replies:
        dialogues[reply.user, reply.dialogue].append(reply)
    choices = [c for own in dialogues.values() for c in _choices(own, counts)]
    if not choices:
        raise UserError("no interaction with a chosen and another reply", _REMEDY, file=table.path)
    line = f"{table.path}: PRISM's interactions (user=user_id, prompt=user_prompt, response=model_response, if_chosen)"
    return people_of(choices, counts, notes=(ATTRIBUTION,), columns=line)


def _table(path: Path) -> Table:
    if is_hub_id(str(path)) and not path.exists():
        return Table(path, list(enumerate(load_hub_rows(str(path), "train", _REMEDY, name="utterances"), start=1)))
    if path.is_dir() and not is_dataset_folder(path):
        found = sorted(path.glob("utterances.*"))
        if not found:
            raise UserError("no utterances.* in the folder", _REMEDY, file=path)
        path = found[0]
    return read_table(path)


def _reply(row: Row, path: Path, line: int) -> _Reply:
    chosen = truth_of(row, "if_chosen")
    if chosen is None:
        raise UserError("must be true or false", "correct it", file=path, line=line, field="if_chosen")
    interaction = name_of(row, "interaction_id", path, line)
    together = "conversation_id" in row and "turn" in row
    return _Reply(
        user=name_of(row, "user_id", path, line),
        dialogue=name_of(row, "conversation_id", path, line) if together else interaction,
        interaction=interaction,
        turn=int(number_of(row, "turn", path, line)) if together else 0,
        prompt=text_field(row, "user_prompt", path, line),
        text=text_field(row, "model_response", path, line),
        chosen=chosen,
    )


def _choices(replies: Sequence[_Reply], counts: Counter[str]) -> list[Judgement]:
    """The choices in one dialogue; after an interaction without one chosen reply its history is not known."""
    turns: dict[tuple[int, str], list[_Reply]] = defaultdict(list)
    for reply in replies:
        turns[reply.turn, reply.interaction].append(reply)
    found: list[Judgement] = []
    history: Prompt = ()
    for _, shown in sorted(turns.items(), key=lambda turn: turn[0]):
        best = [r for r in shown if r.chosen]
        if len(best) != 1:
            counts["interactions without one chosen reply"] += 1
            break
        prompt = (*history, Message("user", best[0].prompt))
        others = [r for r in shown if not r.chosen and r.text.split() != best[0].text.split()]
        found += [Judgement(r.user, Item(prompt, best[0].text), Item(prompt, r.text), 1.0) for r in others]
        history = (*prompt, Message("assistant", best[0].text))
    return found
