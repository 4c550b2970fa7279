"""Study files: what they may say, and the quick reduction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedvpa.errors import UserError
from fedvpa.evaluation.study_schema import Study, load_study

SPEC: dict[str, Any] = {
    "name": "s",
    "title": "S",
    "claim": "C.",
    "seeds": 5,
    "runs": [
        {
            "config": "a.yaml",
            "methods": ["fedvpl", "fedbt"],
            "grid": {"method.beta": [0.1, 1.0]},
            "overrides": {"seed": 3},
        },
        {"config": "a.yaml", "methods": ["oracle"], "variants": {"one": {}, "two": {"seed": 9}}, "seeds": 2},
        {"config": "b.yaml", "methods": ["fedvpl"], "quick": False},
    ],
    "quick": {
        "seeds": 1,
        "methods": ["fedvpl", "oracle"],
        "grid": {"method.beta": [1.0]},
        "variants": ["default", "two"],
        "overrides": {"federation.rounds": 5},
    },
}


def test_the_quick_reduction() -> None:
    one, two = Study.model_validate(SPEC).reduced().runs
    assert (one.methods, one.grid, one.seeds) == (("fedvpl",), {"method.beta": [1.0]}, None)
    assert one.overrides == {"seed": 3, "federation.rounds": 5}
    assert (two.methods, two.variants) == (("oracle",), {"two": {"seed": 9}})
    assert Study.model_validate(SPEC).reduced().seeds == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds: input should be greater than or equal to 1"),
        ({"sedes": 1}, "sedes: extra inputs"),
        ({"tables": [{"title": "t", "rows": ["methd"]}]}, "tables.0: unknown dimension 'methd'; choose from"),
        ({"tables": [{"title": "t", "rows": ["method"], "metric": "acuracy"}]}, "tables.0: unknown metric 'acuracy'"),
        ({"tables": [{"title": "t", "rows": ["method"], "columns": ["variant"], "metric": ["kl", "ece"]}]}, "exclude"),
        ({"checks": [{"says": "x"}]}, "needs at_least, at_most or both"),
        ({"checks": [{"says": "x", "at_least": 0, "minus": {"data.seed": 1}}]}, "checks.0: unknown dimension"),
        ({"figures": [{"name": "a b", "title": "t", "x": "method"}]}, "figures.0.name: string should match"),
        ({"runs": []}, "runs: tuple should have at least 1 item"),
    ],
)
def test_mistakes_name_the_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({**SPEC, **changes}))
    with pytest.raises(UserError) as caught:
        load_study(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such study"):
        load_study(tmp_path / "nothing.yaml")
    (tmp_path / "bad.yaml").write_text("name: [\n")
    with pytest.raises(UserError, match=r"bad.yaml:\d+: not valid YAML"):
        load_study(tmp_path / "bad.yaml")
