from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from results_factory import CONFIG, METHODS, make_metrics, make_results

from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import check_results
from fedvpa.evaluation.results import RoundRecord
from fedvpa.reporting.html import render_report, write_report

ALL_FIGURES = ["comparison", "curve", "rounds", "latents", "prior", "losses", "cost"]
HOSTILE = '<script>alert("$x^{$")</script>&"\'\x07'


class Page(HTMLParser):
    """Collects tags, ids, references and text, and checks that tags are balanced."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.references.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def records(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [RoundRecord.model_validate(m).model_dump() for m in lines]


def render(results: dict[str, Any], metrics: list[dict[str, Any]], config: str = CONFIG) -> str:
    return render_report(check_results(results), records(metrics), config)


def figures_of(page: str) -> list[str]:
    return re.findall(r'<figure id="(\w+)">', page)


@pytest.fixture(scope="module")
def full() -> str:
    return render(make_results(), make_metrics())


def test_whole_report(full: str):
    page = Page(full)
    assert page.open == []
    assert figures_of(full) == ALL_FIGURES
    assert full.count("<svg ") == full.count("</svg>") == len(ALL_FIGURES)
    assert len(full) < 1_500_000
    assert all(f"{m}" in page.text for m in METHODS)
    assert "Labels are made by rules, not by people." in page.text
    assert "context_pairs: 8" in page.text


def test_nothing_is_loaded_from_elsewhere(full: str):
    page = Page(full)
    assert all(r.startswith(("#", "data:image/png;base64,")) for r in page.references)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert not re.search(r"@import|url\((?!['\"]?#)", full)
    outside = re.findall(r"https?://[^\s\"'<]+", full)
    assert set(outside) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_ids_are_unique_and_references_resolve(full: str):
    page = Page(full)
    assert len(page.ids) == len(set(page.ids))
    targets = [r[1:] for r in page.references if r.startswith("#")] + re.findall(r"url\(#([^)]+)\)", full)
    targets += re.findall(r'aria-labelledby="([^"]+)"', full)
    assert set(targets) <= set(page.ids)


def test_figures_are_well_formed_named_and_captioned(full: str):
    for figure in re.findall(r"<figure id=.*?</figure>", full, flags=re.DOTALL):
        svg = figure[figure.index("<svg") : figure.index("</svg>") + 6]
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert len(root.get("aria-label") or "") > 30
        assert "<text" in svg
        assert "<strong>Here" in figure[figure.index("<figcaption>") :]


def test_words_follow_the_numbers(full: str):
    lead = re.search(r'<p class="lead">(.*?)</p>', full, flags=re.DOTALL)
    assert lead is not None
    results = make_results()
    entry = next(e for e in results["summary"] if (e["method"], e["population"], e["inference"], e["context_size"])
                 == ("fedvpa-gp", "unseen", "mixture", 8))  # fmt: skip
    assert lead[1].startswith(f"fedvpa-gp leads: it predicts {entry['mean']:.3f} (95 % interval {entry['ci_low']:.3f}")
    assert "The latent is in use in fedvpa-gp" in lead[1]
    assert "It has collapsed in fedvpl+ortho (switch gap 0.000)" in lead[1]
    assert "The oracle, which knows each user" in lead[1]


def test_hostile_names_stay_text():
    groups = [HOSTILE, "a $ b", "日本語" * 20, "plain"]
    methods = ("fedvpa-gp", "fedbt")
    results, metrics = make_results(methods, 1, groups), make_metrics(methods, 1, groups, rounds=10)
    results["notes"] = [HOSTILE]
    results["data"] = {HOSTILE: HOSTILE}
    results["switching"] = [{HOSTILE: HOSTILE, "accuracy": 0.5}, {HOSTILE: None, "accuracy": 1}]
    page = render(results, metrics, CONFIG + yaml.safe_dump({"x": HOSTILE}))
    assert "<script" not in page
    assert "script" not in Page(page).tags
    assert figures_of(page) == ALL_FIGURES
    for svg in re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("methods", "groups", "figures"),
    [
        (("fedvpa-gp",), [], ["curve", "rounds", "latents", "prior", "losses", "cost"]),
        (("fedbt",), ["a", "b"], ["rounds", "cost"]),
        (("oracle",), ["a", "b"], []),
        (("fedvpl", "fedbt"), [], ["comparison", "curve", "rounds", "latents", "losses", "cost"]),
    ],
)
def test_missing_parts_leave_no_empty_boxes(methods: tuple[str, ...], groups: list[str], figures: list[str]):
    page = render(make_results(methods, 1, groups), make_metrics(methods, 1, groups))
    assert figures_of(page) == figures
    assert "This is one seed" in page
    assert ("Accuracy per true group" in page) == bool(groups)
    assert ("Difference in accuracy to" in page) == (len(methods) > 1)
    assert not re.search(r"<(td|dd|caption|figcaption|tbody|ul|section)[^>]*>\s*</", page)
    assert Page(page).open == []


def test_without_metrics_notes_and_unseen_users():
    results = make_results(("fedvpl",), 2)
    results |= {"notes": [], "data": {}, "environment": {}, "diagnostics": {}}
    results["rows"] = [r for r in results["rows"] if r["population"] == "seen"]
    results["summary"] = [e for e in results["summary"] if e["population"] == "seen"]
    page = render(results, [], "seed: 0\n")
    assert figures_of(page) == ["curve", "cost"]
    assert "users who took part in training" in page
    assert "Keep in mind" not in page
    assert "Data and environment" not in page


def test_the_leaking_protocol_is_called_by_its_name():
    page = render(make_results(("oracle",), 1), [], "evaluation:\n  protocol: pair-leak\n")
    assert "Leaking protocol" in page
    assert "Leaking protocol" not in render(make_results(("oracle",), 1), [])


def test_prior_over_components_and_flat_latents():
    results = make_results(("fedvpa-gp",), 1)
    found = results["diagnostics"]["fedvpa-gp"]
    count = len(found["prior_weights"]["ids"])
    found["prior_weights"]["weights"] = np.full((count, 3), 1 / 3).tolist()
    found["latents"]["means"] = np.zeros((len(found["latents"]["ids"]), 1)).tolist()
    found["prototypes"] = [[1.0], [-1.0]]
    page = render(results, [])
    assert "component of the prior" in page
    assert "of the same group" not in page


def test_same_page_every_time():
    results, metrics = make_results(("fedvpa-gp",), 1), make_metrics(("fedvpa-gp",), 1, rounds=5)
    assert render(results, metrics) == render(results, metrics)


def test_write_report(tmp_path: Path):
    results = check_results(make_results(("fedbt",), 1))
    path = write_report(tmp_path, results, [], CONFIG)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path / "missing", results, [], CONFIG)
