"""A method of another package: the worked example of docs/add-a-method.md, found as an installed package's is."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedvpa.config import known_methods
from fedvpa.errors import UserError
from fedvpa.evaluation.experiment import run_method
from fedvpa.evaluation.result_files import read_results
from fedvpa.network.node import check_method
from toy import method_of, settings, world

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "ditto"
LEARNABLE = {
    "federation__clients": 8,
    "federation__sampled_clients": 8,
    "federation__rounds": 20,
    "federation__local_optimizer": "sgd",
    "federation__learning_rate": 0.1,
    "federation__server_optimizer": "adam",
    "federation__server_learning_rate": 0.01,
}


def install(folder: Path, name: str, target: str) -> None:
    """What pip writes of a package with one entry point."""
    info = folder / f"other_{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: other-{name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[fedvpa.methods]\n{name} = {target}\n")


@pytest.fixture
def ditto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    declared = re.search(r'^ditto = "(.+)"$', (EXAMPLE / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    install(tmp_path / "installed", "ditto", declared[1])
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path / "installed")
    yield
    sys.modules.pop("fedvpa_ditto", None)


@pytest.mark.usefixtures("ditto")
def test_the_example_learns_opposite_wishes_of_seen_and_unseen_users() -> None:
    prepared = world(settings(method__name="ditto", method__lambda_=0.01, **LEARNABLE))
    accuracy = {
        name: {
            r["population"]: r["accuracy"] for r in run_method(prepared, name).rows if r["context_size"] in (8, None)
        }
        for name in ("ditto", "fedbt")
    }
    assert accuracy["fedbt"]["unseen"] == pytest.approx(0.5)  # the two groups want the opposite of one another
    assert accuracy["ditto"]["seen"] > 0.65
    assert accuracy["ditto"]["unseen"] > 0.65


@pytest.mark.usefixtures("ditto")
def test_the_commands_know_an_installed_method(cli: Callable[..., Any], experiment: Path, tmp_path: Path) -> None:
    options = ["--methods", "ditto,fedbt", "--jobs", 1, "--out", tmp_path / "run"]
    done = cli("compare", experiment, *options)
    assert done.code == 0, done.err
    assert {r["method"] for r in read_results(tmp_path / "run" / "results.json")["rows"]} == {"ditto", "fedbt"}


@pytest.mark.usefixtures("ditto")
def test_it_does_not_train_over_a_network() -> None:
    assert known_methods()[-1] == "ditto"
    with pytest.raises(UserError, match="ditto does not train over a network: it comes from another package"):
        check_method(settings(method__name="ditto"))


def test_a_method_that_nobody_brings_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean fedvpl"):
        settings(method__name="fedvp")


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("no_such_module:Method", "cannot be loaded from no_such_module:Method"),
        ("fedvpa.methods.fedbt:FedBT", "is not a method of the name other"),
    ],
)
def test_a_broken_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, problem: str) -> None:
    install(tmp_path, "other", target)
    monkeypatch.syspath_prepend(tmp_path)
    prepared = world(settings())
    with pytest.raises(UserError, match=problem):
        method_of(prepared, "other")
