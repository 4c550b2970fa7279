"""Features and tokens of an experiment's pairs; by itself, so that a client over a network loads little else."""

from __future__ import annotations

from fedvpa.backbone.adapters import adapted
from fedvpa.backbone.encode import Backbone, Features
from fedvpa.backbone.models import cache_dir
from fedvpa.backbone.pairs import PairTexts, pair_texts
from fedvpa.config import ExperimentConfig
from fedvpa.methods.registry import text_form
from fedvpa.preferences.schema import FederatedPreferences


def encode(config: ExperimentConfig, data: FederatedPreferences, progress: bool = True) -> Features:
    """Features of all pairs, from the cache where they are there."""
    backbone = Backbone(config.backbone, cache_dir(config), config.federation.device)
    try:
        return backbone.encode_pairs(data.pairs, progress)
    finally:
        backbone.close()


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
