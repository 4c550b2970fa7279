"""From a configuration to clients: the one place that knows every source by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from fedvpa.config import PEOPLE_SOURCES, DataConfig, ExperimentConfig
from fedvpa.preferences import synthetic
from fedvpa.preferences.clients import partition
from fedvpa.preferences.hh_files import find_source
from fedvpa.preferences.hh_rlhf import attributes_pool, objectives_pool, subsets_pool
from fedvpa.preferences.jsonl import PreferenceRow
from fedvpa.preferences.order import chosen_first
from fedvpa.preferences.people import PeopleTable, federate_people
from fedvpa.preferences.reading import read_people
from fedvpa.preferences.repeats import FOUND
from fedvpa.preferences.schema import CHOICE, FederatedPreferences, LabelledPool, Pair, prompt_key
from fedvpa.preferences.ultrafeedback import ultrafeedback_pool
from fedvpa.preferences.users import federate

CORPUS_SEED = 0
"""The synthetic texts are one fixed corpus, like every other source's; an experiment's seed draws clients from it."""

POOLS: Mapping[str, Callable[[DataConfig, int], LabelledPool]] = {
    "synthetic": lambda data, seed: synthetic.generate(CORPUS_SEED, data.groups),
    "hh-attributes": lambda data, seed: attributes_pool(data),
    "hh-objectives": lambda data, seed: objectives_pool(data),
    "hh-subsets": lambda data, seed: subsets_pool(data),
    "ultrafeedback-p": lambda data, seed: ultrafeedback_pool(data),
}
"""Per source with known groups its pool; `config.PEOPLE_SOURCES` have people instead."""


def load_preferences(config: ExperimentConfig) -> FederatedPreferences:
    """Reads or generates the data that the configuration names and divides it among clients.

    The same configuration gives the same clients, whatever the method.

    Raises:
        UserError: data that cannot be found, read or divided.
    """
    data = config.data
    if data.name in PEOPLE_SOURCES:
        found = _of_people(with_queries(config, people := read_people(data)), people)
    else:
        pool = POOLS[data.name](data, config.seed)
        found = partition(pool, data, config.federation, config.seed, max(config.evaluation.context_sizes))
    return chosen_first(found) if data.order == "chosen-first" else found


def with_people(config: ExperimentConfig) -> tuple[ExperimentConfig, tuple[str, ...]]:
    """The configuration with what depends on the people's table decided, and which columns were taken for what."""
    if config.data.name not in PEOPLE_SOURCES:
        return config, ()
    people = read_people(config.data)
    found = with_queries(config, people)
    lines = [] if config.data.name == "jsonl" and found is config else [people.columns, *people.notes]
    lines += [f"{config.data.path}: {n} {what}" for what in FOUND if (n := people.counts.get(what))]
    if found is not config:
        lines.append(f"evaluation.queries={found.evaluation.queries}, since prompts cannot be held out")
    return found, tuple(lines)


def source_files(data: DataConfig) -> list[Path]:
    """The files on this machine that the data come from; none where they are generated, shipped or on the Hub."""
    named: list[Path] = []
    if data.name.startswith("hh-"):
        found = find_source(data.path)
        named = [found] if isinstance(found, Path) else []
    elif data.path is not None:
        named = [Path(data.path).expanduser()]
    named += [Path(data.items).expanduser()] if data.items else []
    parts = [sorted(place.rglob("*")) if place.is_dir() else [place] for place in named]
    return [file for files in parts for file in files if file.is_file()]


def with_queries(config: ExperimentConfig, people: PeopleTable) -> ExperimentConfig:
    """The configuration with `evaluation.queries` decided: known-items, where it is not given and prompts cannot be
    held out, since people judged single items or all of them one prompt."""
    given = "queries" in config.evaluation.model_fields_set or not bool((people.user.bincount() > 1).any())
    alone = bool((people.judgements.kind != CHOICE).any())
    if given or not (alone or len({prompt_key(i.prompt) for i in people.items}) == 1):
        return config
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"queries": "known-items"})})


def _of_people(config: ExperimentConfig, people: PeopleTable) -> FederatedPreferences:
    data, evaluation = config.data, config.evaluation
    judged = people.judgements
    plain = bool((judged.kind == CHOICE).all()) and bool((judged.weight == 1).all())
    if evaluation.queries != "by-prompt" or not plain:
        return federate_people(people, data, config.federation, evaluation, config.seed)
    context_pairs = max(evaluation.context_sizes)
    counts = Counter(people.counts)
    rows = preference_rows(people)
    found = federate(rows, data, config.federation, config.seed, counts, data.path, context_pairs)
    return replace(found, notes=people.notes)


def preference_rows(people: PeopleTable) -> list[PreferenceRow]:
    """Choices as rows, the pairs in canonical order, so that the same two responses are one pair for everybody."""
    judged = people.judgements
    rows = zip(people.user.tolist(), judged.first.tolist(), judged.second.tolist(), judged.value.tolist(), strict=True)
    made: dict[tuple[int, int], tuple[Pair, int]] = {}
    found = []
    for user, first, second, value in rows:
        if (first, second) not in made:
            one, two = people.items[first], people.items[second]
            made[first, second] = Pair.canonical(one.prompt, one.text, two.text)
        pair, y = made[first, second]
        name = people.users[user]
        found.append(PreferenceRow(name, pair, y if value > 0 else -y, people.groups.get(name)))
    return found
