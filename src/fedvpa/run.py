"""Training from Python: `train` does what `fedvpa train` does, and gives back the selector, the results and the report.

run = fedvpa.train("pairs.csv")
ada = run.selector.infer_user([{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}])
run.results
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from fedvpa.apps import runs, training
from fedvpa.apps.stopping import Interrupted
from fedvpa.config import ExperimentConfig, load_config
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import read_metrics, write_text
from fedvpa.inputs import Rows, rows_of
from fedvpa.preferences.sources import load_preferences, with_people
from fedvpa.reporting.html import render_report
from fedvpa.reporting.tables import print_tables
from fedvpa.selector import Selector
from fedvpa.selector_files import INFO

log = logging.getLogger("fedvpa")


@dataclass(frozen=True, repr=False)
class Run:
    """A finished training.

    Attributes:
        config: the whole configuration.
        path: the run folder; None if none was asked for.
        tree: the results as ``results.json`` has them (docs/results-schema.md).
        metrics: a record per round, as ``metrics.jsonl`` has them.
    """

    config: ExperimentConfig
    path: Path | None
    tree: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    _selector: Selector | None = field(default=None)

    def __repr__(self) -> str:
        place = "" if self.path is None else f", {self.path}"
        return f"Run({self.config.method.name}, seed {self.config.seed}{place})"

    @property
    def selector(self) -> Selector:
        """The trained selector.

        Raises:
            UserError: the method leaves none behind that could be used alone.
        """
        if self._selector is None:
            problem = f"{self.config.method.name} leaves no single selector; the results are all there is"
            raise UserError(problem, "train another method, such as fedvpa-laplace", field="method.name")
        return self._selector

    @property
    def results(self) -> pd.DataFrame:
        """A row per population, inference and context size, with accuracy and the other metrics."""
        return pd.DataFrame(list(self.tree["rows"]))

    def report(self, path: str | Path | None = None) -> Path | None:
        """Prints the tables that `fedvpa train` prints.

        Args:
            path: where the page with the figures is written; a run folder has it as ``report.html`` already.

        Returns:
            The page's path, if there is one.

        Raises:
            UserError: the page cannot be written.
        """
        print_tables(self.tree, Console(), self.config.federation.context_pairs)
        if path is not None:
            return write_text(Path(path).expanduser(), render_report(self.tree, self.metrics, self.config.to_yaml()))
        return None if self.path is None else self.path / runs.REPORT


def train(
    data: str | Path | Rows,
    /,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Trains one method with one seed and measures it, to the same result as `fedvpa train`.

    Args:
        data: a file of people's judgements, a configuration (a YAML file, or the name of a shipped one), or rows: a
            DataFrame, a Dataset, a list of mappings. Rows are not copied anywhere.
        out: a run folder, which the commands can use afterwards; by default nothing is kept but what comes back.
        overwrite: replace the run in that folder; resume: go on with it.
        progress: show a progress bar, on stderr.
        settings: what replaces the configuration: sections as mappings (``federation={"rounds": 50}``) or their keys
            (``federation__rounds=50``), ``method="fedvpl"``, ``seed=1``.

    Raises:
        UserError: bad data, an unknown setting, a missing model, or a folder that may not be written.
        KeyboardInterrupt: Ctrl-C; with ``out`` the round is finished and saved, and ``resume=True`` goes on.
    """
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedvpa-")))
        folder = temporary / "run" if out is None else Path(out).expanduser()
        rows = not isinstance(data, (str, Path))
        path = _written(rows_of(data, "data"), temporary / "data.jsonl") if rows else Path(data).expanduser()
        with _without(temporary, rows):
            config, notes = with_people(load_config(path, _overrides(settings)))
            config = config.for_method(config.method.name)
            preferences = load_preferences(config)
        for note in notes:
            log.info("%s", note)
        if rows:
            config = config.model_copy(update={"data": config.data.model_copy(update={"path": None})})
        found = runs.check_folder(folder, config, "train", overwrite, resume)
        console = Console(stderr=True, quiet=not progress)
        try:
            tree = training.train(config, found, console, data=preferences)
        except Interrupted as e:
            if e.signum != signal.SIGINT:
                raise
            raise KeyboardInterrupt("interrupted" if out is None else "go on with resume=True") from None
        metrics = read_metrics(folder / runs.METRICS)
        selector = Selector.from_pretrained(folder) if (folder / INFO).is_file() else None
    return Run(config, None if out is None else folder, tree, metrics, selector)


def _written(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Rows as JSON Lines, without cells that hold nothing."""
    full = ({k: v for k, v in row.items() if v is not None and v == v} for row in rows)
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in full), encoding="utf-8")
    return path


@contextlib.contextmanager
def _without(temporary: Path, rows: bool) -> Iterator[None]:
    """Errors about rows name them and not the file in which they are for a moment."""
    try:
        yield
    except UserError as e:
        if not rows or e.file is None or not Path(e.file).is_relative_to(temporary):
            raise
        raise UserError(e.problem, e.remedy, file="data", line=e.line, field=e.field) from None


def _overrides(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keywords as the command line has them."""
    found = []
    for name, value in settings.items():
        key = f"{prefix}{name}".replace("__", ".")
        if isinstance(value, Mapping):
            found += _overrides(value, f"{key}.")
        elif key in ("method", "data"):
            found.append(f"{key}.name={json.dumps(value, default=str)}")
        else:
            found.append(f"{key}={json.dumps(value, default=str)}")
    return found
