"""What chat templates add to a dialogue by themselves: it says nothing about the exchange, and is taken off again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from fedvpa.backbone.files import first_line, quiet
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Message, Prompt

_PROBE = "fedvpa-probe"
_DATES = re.compile(r"\ACutting Knowledge Date: [^\n]*\nToday Date: [^\n]*\n*")
"""The head of the system turn of Llama 3.1 and later."""
_DEFAULTS = (
    "You are a helpful assistant.",  # Qwen2
    "You are a helpful assistant",  # Qwen1.5
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",  # Qwen2.5
    "Please reason step by step, and put your final answer within \\boxed{}.",  # Qwen2.5-Math
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",  # SmolLM2
)


@dataclass(frozen=True)
class Additions:
    """System turns that templates insert where a dialogue has none."""

    systems: frozenset[str]

    def without(self, prompt: Prompt) -> Prompt:
        """The dialogue without such a turn, and without the dates that Llama 3.1 writes into it."""
        if not prompt or prompt[0].role != "system":
            return prompt
        text = _DATES.sub("", prompt[0].content).strip()
        if not text or text in self.systems:
            return prompt[1:]
        return (Message("system", text), *prompt[1:])


KNOWN = Additions(frozenset(_DEFAULTS))


def additions_of(tokenizer: str | None) -> Additions:
    """`KNOWN`, and what the template of a policy's tokenizer inserts.

    Args:
        tokenizer: a folder or Hub id; None: no further one.

    Raises:
        UserError: there is no such tokenizer, or it has no chat template.
    """
    if tokenizer is None:
        return KNOWN
    loaded = _load(tokenizer)
    if not loaded.chat_template:
        raise UserError("has no chat template", "leave it out: nothing is added", file=tokenizer, field="--tokenizer")
    return Additions(KNOWN.systems | {_inserted(loaded)} - {""})


def _load(name: str) -> Any:
    folder = Path(name).expanduser()
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise UserError("no such folder", "check the path, or give a Hub id", file=name, field="--tokenizer")
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder if folder.is_dir() else name)
    except (OSError, ValueError, KeyError) as e:
        problem = f"no tokenizer that transformers can read ({first_line(e)})"
        raise UserError(problem, "give the policy's folder or Hub id", file=name, field="--tokenizer") from None


def _inserted(tokenizer: Any) -> str:
    """The system text that a template writes by itself: what it does with a system turn, undone."""
    ask = {"role": "user", "content": "x"}
    try:
        alone, told = (
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            for turns in ([ask], [{"role": "system", "content": _PROBE}, ask])
        )
    except (TemplateError, TypeError, ValueError):
        return ""  # it knows no system turn
    before, found, behind = told.partition(_PROBE)
    if not found or not alone.startswith(before) or not alone.endswith(behind):
        return ""
    return str(alone[len(before) : len(alone) - len(behind)]).strip()
