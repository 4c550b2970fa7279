"""Features of an experiment's pairs; by itself, so that a client over a network loads little else."""

from __future__ import annotations

from fedvpa.backbone.encode import Backbone, Features
from fedvpa.backbone.models import cache_dir
from fedvpa.config import ExperimentConfig
from fedvpa.preferences.schema import FederatedPreferences


def encode(config: ExperimentConfig, data: FederatedPreferences, progress: bool = True) -> Features:
    """Features of all pairs, from the cache where they are there."""
    backbone = Backbone(config.backbone, cache_dir(config), config.federation.device)
    try:
        return backbone.encode_pairs(data.pairs, progress)
    finally:
        backbone.close()
