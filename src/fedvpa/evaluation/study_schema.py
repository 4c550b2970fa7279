"""What a study file (``configs/studies/*.yaml``) may say: which cells are run, what is shown of them, what is tested.

A study's rows are those of ``results.json`` with the *settings* as further columns: ``benchmark`` (the run's label),
``variant`` (the name of a set of overrides) and every configuration key that differs between its cells. A *dimension*
below is a setting or one of ``method``, ``population``, ``inference`` and ``context_size``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedvpa.config import find_config, read_yaml
from fedvpa.errors import UserError
from fedvpa.evaluation.results import METRICS

Overrides = dict[str, Any]
"""Configuration keys, dotted, with their values."""
Where = dict[str, Any]
"""Dimensions with the value (or the list of values) that rows must have."""

DEFAULT = "default"
"""The variant without overrides, and the inference that validation users chose."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Run(_Strict):
    """Cells on one benchmark: variants x grid x methods x seeds.

    A key of the grid has a list of values; ``variants`` are overrides that change together, by name.
    """

    config: str = Field(description="A configuration, relative to the working directory or to the study's file.")
    label: str | None = Field(None, description="What `benchmark` says; by default the configuration's name.")
    methods: tuple[str, ...] = Field(min_length=1, description="Methods.")
    overrides: Overrides = Field({}, description="Values for every cell of this run.")
    grid: dict[str, list[Any]] = Field({}, description="Values that are combined with one another.")
    variants: dict[str, Overrides] = Field({DEFAULT: {}}, min_length=1, description="Named overrides.")
    seeds: int | None = Field(None, ge=1, description="Instead of the study's.")
    quick: bool = Field(True, description="Whether the quick study has this run.")
    tuned: bool = Field(True, description="Whether the study's settings per method apply to it.")

    @property
    def benchmark(self) -> str:
        return self.label or Path(self.config).stem


class Quick(_Strict):
    """The reduction of `--quick`."""

    seeds: int = Field(1, ge=1, description="Seeds.")
    overrides: Overrides = Field({}, description="Values for every cell, such as fewer rounds.")
    methods: tuple[str, ...] | None = Field(None, description="Only these methods.")
    grid: dict[str, list[Any]] = Field({}, description="Only these values of a key of the grid.")
    variants: tuple[str, ...] | None = Field(None, description="Only these variants.")


class _Shown(_Strict):
    title: str = Field(description="What is shown.")
    where: Where = Field({}, description="Which rows; unseen users and the main context size unless it says otherwise.")
    difference: Where = Field(
        {}, description="Show the paired difference to the rows with these values instead of the value itself."
    )


class Table(_Shown):
    """Rows and columns; with several metrics they are the columns."""

    metric: str | tuple[str, ...] = Field("accuracy", description="One metric, or several.")
    rows: tuple[str, ...] = Field(min_length=1, description="Dimensions down the page.")
    columns: tuple[str, ...] = Field((), description="Dimensions across the page.")

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,) if isinstance(self.metric, str) else self.metric

    def dimensions(self) -> tuple[str, ...]:
        return (*self.rows, *self.columns)

    @model_validator(mode="after")
    def _one_way_across(self) -> Table:
        if len(self.metrics) > 1 and self.columns:
            raise ValueError("several metrics and columns exclude each other")
        return self


class Figure(_Shown):
    """``line``: a metric over x, a line per series. ``dots``: a dot with its interval per value of x."""

    name: str = Field(pattern=r"^[a-z0-9-]+$", description="The file's name without .svg.")
    kind: Literal["line", "dots"] = Field("line", description="How it is drawn.")
    metric: str = Field("accuracy", description="What is drawn.")
    x: str = Field(description="The dimension along the axis (of dots: down the page).")
    series: str | None = Field(None, description="The dimension with a colour each.")
    facets: str | None = Field(None, description="The dimension with a panel each, or `metric`.")
    metrics: tuple[str, ...] = Field((), description="The panels' metrics where facets is `metric`.")
    level: tuple[Any, ...] = Field((), description="Series that x does not concern, drawn as level lines.")
    chance: float | None = Field(None, description="Where to draw a dashed line.")

    def dimensions(self) -> tuple[str, ...]:
        named = (self.x, self.series, self.facets)
        return tuple(d for d in named if d is not None and d != "metric")

    @property
    def shown_metrics(self) -> tuple[str, ...]:
        return self.metrics or (self.metric,)


class Check(_Strict):
    """A claim as a rule: a value, or a paired difference, that has to lie in a range."""

    says: str = Field(description="The claim, in words that go on from a colon.")
    paper: bool = Field(False, description="Whether it is the paper's claim; else it is ours.")
    metric: str = Field("accuracy", description="What is compared.")
    where: Where = Field({}, description="The rows.")
    minus: Where = Field(
        {}, description="The rows that are subtracted: `where` with these values; a list: one test each."
    )
    each: tuple[str, ...] = Field((), description="One test per combination of these dimensions.")
    at_least: float | None = Field(None, description="Lower end of the claimed range.")
    at_most: float | None = Field(None, description="Upper end of the claimed range.")
    burden: Literal["shown", "not refuted"] = Field(
        "shown", description="Whether a test that decides nothing counts against the claim, or for it."
    )

    @model_validator(mode="after")
    def _range(self) -> Check:
        if self.at_least is None and self.at_most is None:
            raise ValueError("needs at_least, at_most or both")
        return self


class Study(_Strict):
    """The whole file."""

    name: str = Field(pattern=r"^[a-z0-9-]+$", description="Short name, also of the folder.")
    title: str = Field(description="A heading.")
    claim: str = Field(description="The sentence that the study tests.")
    seeds: int = Field(ge=1, description="Seeds, from 0 on.")
    settings: str | None = Field(
        None,
        description="A YAML file with overrides per method (configs/tuned.yaml), relative like a configuration; what a "
        "run itself sets goes on top.",
    )
    runs: tuple[Run, ...] = Field(min_length=1, description="What is run.")
    tables: tuple[Table, ...] = Field((), description="What is shown as tables.")
    figures: tuple[Figure, ...] = Field((), description="What is drawn.")
    checks: tuple[Check, ...] = Field((), description="What is tested.")
    names: dict[str, str] = Field({}, description="How dimensions are called in tables and figures.")
    quick: Quick = Field(Quick(), description="The reduction of --quick.")

    def reduced(self) -> Study:
        """The quick study."""
        q = self.quick
        runs = []
        for run in self.runs:
            methods = tuple(m for m in run.methods if q.methods is None or m in q.methods)
            variants = {k: v for k, v in run.variants.items() if q.variants is None or k in q.variants}
            if not (run.quick and methods and variants):
                continue
            grid = {k: [v for v in values if v in q.grid.get(k, values)] for k, values in run.grid.items()}
            changes = {"methods": methods, "variants": variants, "grid": grid, "seeds": None}
            runs.append(run.model_copy(update={**changes, "overrides": {**run.overrides, **q.overrides}}))
        return self.model_copy(update={"runs": tuple(runs), "seeds": q.seeds})


def load_study(path: Path) -> Study:
    """Reads a study file.

    Raises:
        UserError: a missing or malformed file, an unknown key, or a metric or a dimension that does not exist.
    """
    path = find_config(path)
    tree = read_yaml(path, "study", "see the files in configs/studies/")
    try:
        study = Study.model_validate(tree)
    except ValidationError as e:
        first = e.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        field = ".".join(str(p) for p in first["loc"]) or None
        raise UserError(message[0].lower() + message[1:], "see configs/studies/", file=path, field=field) from None
    _check_names(study, path)
    return study


def _check_names(study: Study, path: Path) -> None:
    """Metrics and dimensions that tables, figures and checks name must exist."""
    keys = {
        k for run in study.runs for k in (*run.overrides, *run.grid, *(k for v in run.variants.values() for k in v))
    }
    dims = {"benchmark", "variant", "method", "population", "inference", "context_size", *keys}
    shown: list[tuple[str, Where, Where, tuple[str, ...], tuple[str, ...]]] = []
    shown += [(f"tables.{i}", t.where, t.difference, t.dimensions(), t.metrics) for i, t in enumerate(study.tables)]
    shown += [
        (f"figures.{i}", f.where, f.difference, f.dimensions(), f.shown_metrics) for i, f in enumerate(study.figures)
    ]
    shown += [(f"checks.{i}", c.where, c.minus, c.each, (c.metric,)) for i, c in enumerate(study.checks)]
    for field, where, other, dimensions, metrics in shown:
        for d in sorted({*where, *other, *dimensions} - dims):
            remedy = f"choose from {', '.join(sorted(dims))}"
            raise UserError(f"unknown dimension {d!r}", remedy, file=path, field=field)
        for m in metrics:
            if m not in ("accuracy", *METRICS) and not m.startswith("group_accuracy/"):
                remedy = f"choose from accuracy, {', '.join(METRICS)}, group_accuracy/GROUP"
                raise UserError(f"unknown metric {m!r}", remedy, file=path, field=field)
