"""Tiny models on disk, and pairs to encode."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvpa.backbone import Backbone
from fedvpa.config import BackboneConfig
from fedvpa.preferences.schema import Message, Pair
from tiny_model import TEMPLATE, save_llama


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
