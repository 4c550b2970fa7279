"""Frozen models turn texts into features, once, with a cache on disk."""

from fedvpa.backbone.backbones import Backbones, open_backbone
from fedvpa.backbone.encode import Backbone
from fedvpa.backbone.features import EncodeReport, Features, ItemFeatures, TextEncoder
from fedvpa.backbone.models import EMBEDDED, EMBEDDED_ENCODER, ResolvedModel, cache_dir, resolve
from fedvpa.backbone.sentence import SentenceBackbone

__all__ = [
    "EMBEDDED",
    "EMBEDDED_ENCODER",
    "Backbone",
    "Backbones",
    "EncodeReport",
    "Features",
    "ItemFeatures",
    "ResolvedModel",
    "SentenceBackbone",
    "TextEncoder",
    "cache_dir",
    "open_backbone",
    "resolve",
]
