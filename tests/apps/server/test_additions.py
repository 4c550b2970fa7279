"""Templates of known families: whatever a template adds, the same exchange has the same reward."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fedvpa.apps.server.additions import KNOWN, additions_of
from fedvpa.apps.server.openrlhf import bare, split
from fedvpa.backbone.tokens import Renderer
from fedvpa.errors import UserError
from fedvpa.preferences.schema import Message
from tiny_model import save_tokenizer

QWEN = (
    "{% if messages[0]['role'] == 'system' %}<|im_start|>system\n{{ messages[0]['content'] }}<|im_end|>\n"
    "{% else %}<|im_start|>system\n{{ default }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m['role'] != 'system' %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN25 = QWEN.replace("{{ default }}", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
OWN_DEFAULT = QWEN.replace("{{ default }}", "You speak for ACME.")
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
DEEPSEEK = (
    "<｜begin▁of▁sentence｜>{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
    "{% else %}<｜Assistant｜>{{ m['content'] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
DEEPSEEK_R1 = DEEPSEEK.replace("<｜Assistant｜>{% endif %}", "<｜Assistant｜><think>\n{% endif %}")
LLAMA31 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}<|eot_id|>"
    "{% for m in messages %}{% if m['role'] != 'system' %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] "
    "{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}<<SYS>>\n{{ messages[0]['content'] }}\n<</SYS>>\n\n"
    "{% endif %}{{ m['content'] }} [/INST]{% elif m['role'] == 'assistant' %} {{ m['content'] }} </s>{% endif %}"
    "{% endfor %}"
)
PHI4 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}<|im_sep|>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
FAMILIES = {
    "qwen2.5": (QWEN25, "<|im_end|>\n"),
    "qwen3": (QWEN3, "<|im_end|>"),
    "deepseek": (DEEPSEEK, "<｜end▁of▁sentence｜>"),
    "deepseek-r1": (DEEPSEEK_R1, "<｜end▁of▁sentence｜>"),
    "llama3.1": (LLAMA31, "<|eot_id|>"),
    "llama2": (LLAMA2, " </s>"),
    "phi4": (PHI4, "<|im_end|>"),
}
HI, BRIEF = Message("user", "Hi.\nYou?"), Message("system", "Be brief.")
LONGER = (BRIEF, HI, Message("assistant", "Yes."), Message("user", "Really?"))


def tokenizer_with(folder: Path, template: str) -> Any:
    save_tokenizer(folder, template)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dialogue", [(HI,), (BRIEF, HI), LONGER])
def test_the_exchange_is_the_same_whatever_the_template_adds(
    tmp_path: Path, family: str, dialogue: tuple[Message, ...]
) -> None:
    template, end = FAMILIES[family]
    tokenizer = tokenizer_with(tmp_path, template)
    messages = [m._asdict() for m in dialogue]
    for options in ({}, {"enable_thinking": False}):
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options)
        query = f"{prompt}Sure.\n\nAnd you?{end}"
        for given in (prompt, None):
            found, response = split(query, given, 0)
            assert found == dialogue
            assert response.removeprefix("<think>").strip() == "Sure.\n\nAnd you?"


def test_an_empty_think_block_is_no_part_of_a_response() -> None:
    for text in ("<think>\n\n</think>\n\nSure.", "<think></think>Sure.<|im_end|>", "Sure.<｜end▁of▁sentence｜>"):
        assert bare(text) == "Sure."
    assert bare("<think>hm</think>Sure.") == "<think>hm</think>Sure."


def test_a_template_of_ones_own_is_known_by_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, OWN_DEFAULT)
    prompt = tokenizer.apply_chat_template([HI._asdict()], add_generation_prompt=True, tokenize=False)
    assert split(f"{prompt}Yes.", prompt, 0) == ((Message("system", "You speak for ACME."), HI), "Yes.")
    assert split(f"{prompt}Yes.", prompt, 0, additions_of(str(tmp_path))) == ((HI,), "Yes.")
    assert additions_of(None) is KNOWN
    for template in (QWEN3, DEEPSEEK, LLAMA2):
        tokenizer_with(tmp_path, template)
        assert additions_of(str(tmp_path)) == KNOWN


def test_a_tokenizer_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--tokenizer: no such folder"):
        additions_of(str(tmp_path / "none"))
    save_tokenizer(tmp_path)
    with pytest.raises(UserError, match="--tokenizer: has no chat template"):
        additions_of(str(tmp_path))


def test_a_template_that_writes_the_date_gives_the_same_text_every_day(tmp_path: Path) -> None:
    renderer = Renderer(tokenizer_with(tmp_path, LLAMA31))
    assert "Today Date: 26 Jul 2024" in renderer.prompt((HI,))
    assert f"Today Date: {datetime.now().year}" not in renderer.prompt((HI,))
