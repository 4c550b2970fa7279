"""A tiny, randomly initialised sentence encoder with a byte-level tokenizer, on disk like a real one."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel

from tiny_model import save_tokenizer

LIMIT = 40
"""Tokens (bytes, here) that it reads of a text."""


def save_encoder(
    folder: Path, dense: bool = False, prompt: str | None = None, pooling: str = "mean", limit: int = LIMIT
) -> Path:
    """A tiny BERT with pooling and normalisation, written as the library writes it."""
    torch.manual_seed(1)
    sizes = dict(vocab_size=258, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config = BertConfig(**sizes, max_position_embeddings=64, initializer_range=0.5, pad_token_id=1)
    BertModel(config).save_pretrained(folder / "bert")
    save_tokenizer(folder / "bert")
    modules = [Transformer(str(folder / "bert"), max_seq_length=limit), Pooling(16, pooling)]
    modules += [Dense(16, 8)] if dense else []
    prompts = {"prompts": {"note": prompt}, "default_prompt_name": "note"} if prompt else {}
    SentenceTransformer(modules=[*modules, Normalize()], device="cpu", **prompts).save_pretrained(str(folder / "whole"))
    return folder / "whole"
