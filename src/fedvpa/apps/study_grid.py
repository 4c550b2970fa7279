"""From a study file to its cells: methods x settings x seeds, each known by its content."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvpa.apps.cells import Cell, data_part
from fedvpa.apps.comparing import parse_methods
from fedvpa.config import ExperimentConfig, find_config, load_config, read_yaml
from fedvpa.errors import UserError
from fedvpa.evaluation.study_schema import Run, Study


@dataclass(frozen=True)
class StudyCell:
    """A cell of a study.

    Attributes:
        cell: method and seed; config: the setting's configuration (its own method and seed do not matter).
        settings: the study's columns for it.
        address: see `Cell.address`.
    """

    cell: Cell
    config: ExperimentConfig
    settings: Mapping[str, Any]
    address: str

    def __str__(self) -> str:
        keys = [k for k in self.settings if k not in ("benchmark", "variant") and len(str(self.settings[k])) < 24]
        shown = [f"{k.rpartition('.')[2]}={self.settings[k]}" for k in keys]
        variant = [] if self.settings["variant"] == "default" else [str(self.settings["variant"])]
        return ", ".join([str(self.settings["benchmark"]), *variant, *shown, str(self.cell)])

    def file(self, cells: Path) -> Path:
        return cells / f"{self.address}.json"


def expand(study: Study, file: Path, overrides: Sequence[str] = (), seeds: int | None = None) -> list[StudyCell]:
    """Every cell of a study, each once, in an order in which cells that share their data follow each other.

    Args:
        overrides: ``key=value`` for every cell, on top of the study's.
        seeds: instead of the study's numbers of seeds.

    Raises:
        UserError: an unknown method or key, a value out of range, or two cells that no setting tells apart.
    """
    found: list[tuple[dict[str, Any], tuple[str, ...], ExperimentConfig, str, int]] = []
    tuned = _tuned(study, file)
    for run in study.runs:
        methods = parse_methods(",".join(run.methods))
        for (variant, own), method in itertools.product(_settings(run), methods):
            settings = tuned.get(method, {}) if run.tuned else {}
            config = _configuration(run, {**settings, **own}, overrides, file)
            for seed in range(seeds or run.seeds or study.seeds):
                named = {"benchmark": run.benchmark, "variant": variant}
                found.append((named, tuple(own), config, method, config.seed + seed))
    keys = _varying(found)
    cells: dict[str, StudyCell] = {}
    for named, _, config, method, seed in found:
        cell = Cell(method, seed)
        settings = {**named, **{k: _plain(_value(config, k)) for k in keys}}
        one = StudyCell(cell, config, settings, cell.address(config))
        other = cells.setdefault(json.dumps([settings, method, seed]), one)
        if other.address != one.address:
            raise UserError(f"two settings look the same ({other})", "name one with a label or a variant", file=file)
    groups: dict[str, list[StudyCell]] = {}
    for one in cells.values():
        groups.setdefault(data_part(one.cell.config(one.config)), []).append(one)
    return [one for group in groups.values() for one in group]


def _settings(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """Variant and overrides of each setting of a run."""
    for variant, own in run.variants.items():
        for values in itertools.product(*run.grid.values()):
            yield variant, {**run.overrides, **dict(zip(run.grid, values, strict=True)), **own}


def _beside(path: str, file: Path) -> Path:
    """A path relative to the working directory or to the study's file, or a shipped configuration."""
    beside = file.parent / path
    return beside if not Path(path).is_file() and beside.is_file() else find_config(path)


def _tuned(study: Study, file: Path) -> dict[str, dict[str, Any]]:
    """Overrides per method."""
    if study.settings is None:
        return {}
    path = _beside(study.settings, file)
    tree = read_yaml(path, "settings", "see configs/tuned.yaml")
    if not isinstance(tree, dict) or not all(isinstance(own, dict) for own in tree.values()):
        raise UserError("not a mapping of methods to overrides", "see configs/tuned.yaml", file=path)
    parse_methods(",".join(tree))
    return tree


def _configuration(run: Run, own: Mapping[str, Any], overrides: Sequence[str], file: Path) -> ExperimentConfig:
    path = _beside(run.config, file)
    try:
        return load_config(path, [*(f"{k}={_text(v)}" for k, v in own.items()), *overrides])
    except UserError as e:
        raise UserError(f"{run.benchmark}: {e}", file=file) from None


def _text(value: Any) -> str:
    return ".inf" if value == float("inf") else json.dumps(value)


def _value(config: ExperimentConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _plain(value: Any) -> Any:
    """Lists as text: a setting is a column of a table."""
    return "/".join(str(v) for v in value) if isinstance(value, (list, tuple)) else value


def _varying(found: Sequence[tuple[dict[str, Any], tuple[str, ...], ExperimentConfig, str, int]]) -> list[str]:
    """The keys named by some run whose values differ between cells."""
    named = list(dict.fromkeys(k for _, own, *_ in found for k in own))
    return [k for k in named if len({json.dumps(_plain(_value(config, k))) for _, _, config, *_ in found}) > 1]
