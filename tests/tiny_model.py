"""A tiny, randomly initialised language model with a byte-level tokenizer, on disk like a real one."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<s>system\nA long default that costs tokens.</s>\n{% endif %}"
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def save_tokenizer(folder: Path, template: str | None = None) -> None:
    vocab = {c: i for i, c in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = template
    fast.save_pretrained(folder)


def save_llama(folder: Path, template: str | None = None, **options: object) -> Path:
    torch.manual_seed(0)
    config = dict(vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
    config |= dict(num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3) | options
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)
    save_tokenizer(folder, template)
    return folder
