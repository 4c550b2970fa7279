"""A frozen language model turns texts into features, once, with a cache on disk."""

from fedvpa.backbone.encode import Backbone, EncodeReport, Features
from fedvpa.backbone.models import EMBEDDED, ResolvedModel, cache_dir, resolve

__all__ = ["EMBEDDED", "Backbone", "EncodeReport", "Features", "ResolvedModel", "cache_dir", "resolve"]
