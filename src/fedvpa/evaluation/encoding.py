"""Features and tokens of an experiment's pairs; by itself, so that a client over a network loads little else."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import TypeVar

from fedvpa.backbone.adapters import adapted
from fedvpa.backbone.backbones import open_backbone
from fedvpa.backbone.features import Features, TextEncoder
from fedvpa.backbone.models import cache_dir
from fedvpa.backbone.pairs import PairTexts, pair_texts
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.methods.registry import text_form
from fedvpa.preferences.schema import FederatedPreferences

K = TypeVar("K")


def encode(config: ExperimentConfig, data: FederatedPreferences, progress: bool = True) -> Features:
    """Features of all items and pairs, from the cache where they are there."""
    with closing(_open(config)) as backbone:
        return backbone.encode_pairs(data.pairs, progress, others=data.items)


def readable(
    config: ExperimentConfig, data: FederatedPreferences, progress: bool = True
) -> tuple[FederatedPreferences, Features]:
    """The data without the pairs whose two responses the backbone reads as the same, and the features of all.

    Raises:
        UserError: nobody has a pair left to train on.
    """
    features = encode(config, data, progress)
    if features.equal is None:
        return data, features
    left = data.without_pairs(features.equal)
    if not left.clients["seen"]:
        problem = "what is read of the two responses of every pair is the same"
        raise UserError(problem, "raise it, or choose a backbone that reads more", field="backbone.max_tokens")
    return left, features


def warm(configs: Mapping[K, ExperimentConfig], data: FederatedPreferences) -> dict[K, UserError]:
    """Caches the features of all pairs for several configurations, in one pass of the model.

    Args:
        configs: configurations whose backbones differ in layer and pooling of causal LMs only.

    Returns:
        What is wrong with those that cannot be had (no such layer); the others are cached.

    Raises:
        UserError: what none of them can be had for.
    """
    failed: dict[K, UserError] = {}
    with ExitStack() as stack:
        backbones = []
        for key, config in configs.items():
            try:
                backbones.append(stack.enter_context(closing(_open(config))))
            except UserError as e:
                failed[key] = e
        if backbones:
            backbones[0].encode_pairs(data.pairs, beside=backbones[1:])
    return failed


def _open(config: ExperimentConfig) -> TextEncoder:
    return open_backbone(config.backbone, cache_dir(config), config.federation.device)


def tokenize(config: ExperimentConfig, data: FederatedPreferences) -> PairTexts | None:
    """All pairs as the tokens that `method.name` needs; None where it trains on features only.

    Raises:
        UserError: as `backbone.adapters.adapted`.
    """
    form = text_form(config)
    if form is None:
        return None
    lm = adapted(config)
    return pair_texts(lm.lm.renderer, form, data.pairs, lm.max_tokens)
