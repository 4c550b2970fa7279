"""From a configuration to clients: the one place that knows every source by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedvpa.config import DataConfig, ExperimentConfig
from fedvpa.preferences import synthetic
from fedvpa.preferences.clients import partition
from fedvpa.preferences.hh_rlhf import attributes_pool, objectives_pool, subsets_pool
from fedvpa.preferences.order import chosen_first
from fedvpa.preferences.schema import FederatedPreferences, LabelledPool
from fedvpa.preferences.ultrafeedback import ultrafeedback_pool
from fedvpa.preferences.users import load_users

CORPUS_SEED = 0
"""The synthetic texts are one fixed corpus, like every other source's; an experiment's seed draws clients from it."""

POOLS: Mapping[str, Callable[[DataConfig, int], LabelledPool]] = {
    "synthetic": lambda data, seed: synthetic.generate(CORPUS_SEED, data.groups),
    "hh-attributes": lambda data, seed: attributes_pool(data),
    "hh-objectives": lambda data, seed: objectives_pool(data),
    "hh-subsets": lambda data, seed: subsets_pool(data),
    "ultrafeedback-p": lambda data, seed: ultrafeedback_pool(data),
}
"""Per source with known groups its pool; ``jsonl`` has users instead."""


def load_preferences(config: ExperimentConfig) -> FederatedPreferences:
    """Reads or generates the data that the configuration names and divides it among clients.

    The same configuration gives the same clients, whatever the method.

    Raises:
        UserError: data that cannot be found, read or divided.
    """
    data = config.data
    context_pairs = max(config.evaluation.context_sizes)
    if data.name == "jsonl":
        found = load_users(data, config.federation, config.seed, context_pairs)
    else:
        pool = POOLS[data.name](data, config.seed)
        found = partition(pool, data, config.federation, config.seed, context_pairs)
    return chosen_first(found) if data.order == "chosen-first" else found
