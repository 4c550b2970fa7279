"""A tiny language model with a chat template."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_model import TEMPLATE, save_llama


@pytest.fixture(scope="session")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("chatty"), TEMPLATE, tie_word_embeddings=True)
