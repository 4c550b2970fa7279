from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvpa.errors import UserError
from fedvpa.evaluation.compare import summarise
from fedvpa.evaluation.result_files import plain, read_metrics, read_results, write_results, write_text
from fedvpa.evaluation.results import METRICS, Row, schema_markdown

PROMISED = [
    "method",
    "seed",
    "population",
    "inference",
    "default",
    "context_size",
    "accuracy",
    "worst_group_accuracy",
    "log_loss",
    "ece",
    "switch_gap",
    "flip_rate",
    "active_units",
    "cluster_purity",
    "kl",
    "bytes_up",
    "bytes_down",
    "seconds_per_round",
]


def make(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = dict.fromkeys(PROMISED)
    base |= {"method": "fedbt", "seed": 0, "population": "seen", "inference": "none", "default": True, "accuracy": 0.5}
    return {**base, **changes}


def results(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"rows": list(rows), "summary": summarise(rows, [None] * len(rows))}


def test_a_row_holds_what_was_promised():
    assert [k for k, f in Row.model_fields.items() if f.is_required()] == PROMISED
    assert "accuracy" not in METRICS
    assert "switch_gap" in METRICS


def test_round_trip(tmp_path: Path):
    written = results(make(), make(seed=1, group_accuracy={"a": 0.4}, ece=np.float32(0.25)))
    written["diagnostics"] = {"fedbt": {"prototypes": torch.eye(2), "group_names": ("a",)}}
    written["notes"] = ["Ünïcode – yes"]
    path = write_results(tmp_path / "results.json", written)
    read = read_results(path)
    assert read["rows"][1]["ece"] == 0.25
    assert read["rows"][1]["group_accuracy"] == {"a": 0.4}
    assert read["diagnostics"]["fedbt"]["prototypes"] == [[1.0, 0.0], [0.0, 1.0]]
    assert read["notes"] == written["notes"]
    assert read["summary"] == json.loads(path.read_text())["summary"]
    assert read_results(write_results(path, read)) == read


def test_nan_is_written_as_null(tmp_path: Path):
    path = write_results(tmp_path / "r.json", results(make(kl=float("nan"), ece=float("inf"))))
    assert "NaN" not in path.read_text()
    row = read_results(path)["rows"][0]
    assert (row["kl"], row["ece"]) == (None, None)


def test_plain_leaves_plain_values_alone():
    assert plain({"a": (1, "x", None, True, np.int64(3))}) == {"a": [1, "x", None, True, 3]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inference": "magic"}, "rows.0.inference: input should be 'amortised'"),
        ({"accuracy": "high"}, "rows.0.accuracy: input should be a valid number"),
        ({"acuracy": 1.0}, "rows.0.acuracy: extra inputs are not permitted"),
        ({"default": False}, "0 rows with default true instead of 1 (fedbt, seed 0, seen, context size None)"),
    ],
)
def test_invalid_results_are_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"rows": [make(**change)], "summary": []}))
    with pytest.raises(UserError) as e:
        read_results(path)
    assert str(e.value).startswith(str(path))
    assert message in str(e.value)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError):
        write_results(tmp_path / "other.json", {"rows": [make(**change)], "summary": []})
    assert not (tmp_path / "other.json").exists()


def test_unreadable_files(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "missing.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_results(tmp_path / "b.json")
    (tmp_path / "c.json").write_text('{"rows": [\n}')
    with pytest.raises(UserError, match=r"c.json:2: not valid JSON"):
        read_results(tmp_path / "c.json")
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "no" / "folder.json", "x")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_text(tmp_path / "r.txt", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["r.txt"]
    assert path.read_text() == "old"


def test_latents_of_unequal_length_are_refused(tmp_path: Path):
    latents = {"ids": ["a"], "groups": [], "populations": ["seen"], "means": [[0.0]], "log_vars": [[0.0]]}
    tree = {**results(make()), "diagnostics": {"fedbt": {"latents": latents}}}
    with pytest.raises(UserError, match="differ in length"):
        write_results(tmp_path / "r.json", tree)


def test_metrics(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    line = {"method": "fedbt", "seed": 0, "round": 1, "loss": 0.5, "validation": {"accuracy": 0.6}}
    path.write_text(json.dumps(line) + "\n\n" + json.dumps({**line, "round": 2}) + "\n" + '{"method": "fed')
    records = read_metrics(path)
    assert [r["round"] for r in records] == [1, 2]  # the last line was cut short by a kill
    assert records[0]["validation"] == {"accuracy": 0.6, "worst_group_accuracy": None, "group_accuracy": None}
    assert records[0]["kl"] is None
    path.write_text(json.dumps(line) + "\n{}\n")
    with pytest.raises(UserError, match=r"metrics.jsonl:2: method: field required"):
        read_metrics(path)
    path.write_text("{\n")
    with pytest.raises(UserError, match=r"metrics.jsonl:1: not valid JSON"):
        read_metrics(path)


def test_the_documented_schema_is_the_generated_one():
    page = Path(__file__).parents[2] / "docs" / "results-schema.md"
    assert page.read_text(encoding="utf-8") == schema_markdown()


def test_the_page_names_every_promised_key_and_type():
    page = schema_markdown()
    for key in PROMISED:
        assert f"| `{key}` |" in page
    assert "| `context_size` | integer or null |" in page
    assert "| `weights` | list of list of number |" in page
    assert "`amortised` or `mixture` or `refined` or `gaussian` or `none`" in page
