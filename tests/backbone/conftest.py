"""A tiny, randomly initialised model with a byte-level tokenizer, on disk like a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedvpa.backbone import Backbone
from fedvpa.config import BackboneConfig
from fedvpa.preferences.schema import Message, Pair

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


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama without a chat template."""
    return save_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a chat template that inserts a default system prompt."""
    return save_llama(tmp_path_factory.mktemp("chatty"), TEMPLATE)


@pytest.fixture
def backbone_of(tmp_path: Path):
    """Makes backbones in float32 on a cache of this test's own."""

    def make(model: Path | str, cache: Path | None = None, **options: object) -> Backbone:
        config = BackboneConfig(**({"model": str(model), "dtype": "float32"} | options))
        return Backbone(config, cache or tmp_path / "cache", device="cpu")

    return make


@pytest.fixture
def pairs() -> list[Pair]:
    """Pairs of several lengths; the second and third share their prompt."""
    one = (Message("user", "What is a fox?"),)
    two = (
        Message("user", "Hi"),
        Message("assistant", "Hello."),
        Message("user", "Tell me about the sea and its tides."),
    )
    return [
        Pair(one, "A small wild animal.", "No idea."),
        Pair(two, "It is wet.", "The moon pulls at the water, twice a day."),
        Pair(two, "Ask a sailor.", "x"),
        Pair((Message("user", "Ü?"),), "ja, äöü", "nein"),
    ]
