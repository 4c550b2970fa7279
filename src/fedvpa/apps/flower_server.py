"""`flwr run`, the server's component; see `flower_client` for the run config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fedvpa.apps.deployed import train_selector
from fedvpa.apps.fingerprints import shared_features
from fedvpa.apps.flower_client import read_run_config
from fedvpa.apps.runs import CONFIG, check_folder
from fedvpa.apps.training import train
from fedvpa.config import ExperimentConfig
from fedvpa.evaluation.experiment import Prepared, Trainer
from fedvpa.federation.rounds import Callback, ClientData, TrainingState
from fedvpa.methods.base import Method
from fedvpa.network.node import check_method
from fedvpa.network.nodes import patient
from fedvpa.network.server_app import Server, connect

server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Trains, or goes on with the unfinished run in the folder."""
    settings, console = read_run_config(context.run_config), Console(stderr=True, force_terminal=False, markup=False)
    config, out = settings.config, settings.out
    check_method(config)
    grid = patient(grid)
    run = check_folder(out, config, "train", resume=(out / CONFIG).is_file())
    if settings.data_from == "nodes":
        train_selector(config, run, console, grid)
    else:
        train(config, run, console, lambda prepared, folder: _over(grid, prepared, folder))
    print(f"trained: {out.resolve()}", flush=True)


def _over(grid: Grid, prepared: Prepared, folder: Path) -> tuple[Trainer, Any]:
    """Rounds over the grid, for an experiment whose data the server has too."""
    servers: list[Server] = []

    def trainer(
        method: Method,
        config: ExperimentConfig,
        data: ClientData,
        state: TrainingState | None,
        callback: Callback | None,
    ) -> TrainingState:
        begin = 0 if state is None else state.server.round
        known_by, groups = shared_features(config), len(prepared.data.groups)
        servers.append(connect(grid, config, folder, begin, len(data), groups, known_by=known_by))
        return servers[0].train(method, config, data, state, callback)

    return trainer, lambda: servers[0].faults.notes()
