"""What `make demo` runs, on some of the same people and in few rounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Cli
from fedvpa.preferences.polis import ATTRIBUTION
from fedvpa.selector import Selector

CONFIG = Path(__file__).parents[2] / "configs" / "polis.yaml"
SMALL = (
    "federation.clients=150",
    "federation.unseen_clients=60",
    "federation.validation_clients=20",
    "federation.sampled_clients=10",
    "federation.rounds=10",
    "laplace.rounds=40",
    "laplace.learning_rate=0.002",
    "evaluation.bootstrap=500",
)

pytestmark = pytest.mark.slow


def test_the_demo_on_some_of_the_people(tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "demo"
    options = [CONFIG, *SMALL, "--out", out, "--jobs", 1, "--json", tmp_path / "demo.json"]
    done = cli("demo", *options)
    assert done.code == 0, done.err
    for method in ("fedbt", "fedvpa-gp", "fedvpa-laplace"):
        assert f"{method} 0." in " ".join(done.out.split())
    assert "Known items, 32 answers: fedvpa-laplace (0." in done.out
    assert "New items, 32 answers: fedvpa-laplace (0." in done.out
    assert ATTRIBUTION in done.out
    found = json.loads((tmp_path / "demo.json").read_text())
    for report in found["reports"]:
        assert ATTRIBUTION in Path(report).read_text()
    known, new = found["asked"]
    assert known["people"] > 40
    assert new["people"] > 20
    for part in (known, new):  # somebody who gave no answer has no personalisation
        before, *_, after = part["accuracy"]["fedvpa-laplace"]
        assert after >= before - 0.02
        assert len(set(part["accuracy"]["fedbt"])) == 1
    flips = found["flips"]
    assert 0 < flips["right"] < flips["couples"]
    assert flips["clearest"]["second"] < 0.5 < flips["clearest"]["first"]
    assert flips["clearest"]["a"] in done.out

    again = cli("demo", *options)
    assert again.code == 0
    assert again.err.count("nothing to do") == 2
    assert again.out == done.out

    assert Selector.from_pretrained(found["selector"]).info.method == "fedvpa-laplace"

    other = cli("demo", *options, "federation.rounds=11")
    assert other.code == 2
    assert "federation.rounds" in other.err
