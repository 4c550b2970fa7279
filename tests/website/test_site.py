"""The site's hooks and its check, without building it (`make site` does)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import check
import hooks

DOCS = Path(__file__).parents[2] / "docs"
GOOD = '<h1 id="top">A</h1><a href="b.html#here">b</a><a href="#top">up</a><a href="https://example.org">far</a>'


def test_equations_become_mathml() -> None:
    inline = '<p><span class="arithmatex">\\(a &lt; b\\)</span></p>'
    block = '<div class="arithmatex">\\[\n\\big\\|p\\big\\|^2\n\\]</div>'
    shown = hooks.on_page_content(inline + block)
    assert shown.count("<math ") == 2
    assert 'alttext="a &lt; b"' in shown
    assert 'display="block"' in shown
    assert not check.UNREADABLE.search(shown)


def test_no_equation_of_the_documentation_is_left_as_latex() -> None:
    equations = [e for page in DOCS.glob("*.md") for e in page.read_text().split("$$")[1::2]]
    assert len(equations) > 5
    assert not [e for e in equations if check.UNREADABLE.search(hooks.mathml(e, "block"))]


def test_links_out_of_the_documentation_lead_to_copies() -> None:
    assert hooks.on_page_markdown("[a](../configs/x.yaml) [b](b.md)") == "[a](repository/configs/x.yaml) [b](b.md)"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "index.html").write_text(GOOD)
    (folder / "b.html").write_text('<p id="here">b</p><link rel="stylesheet" href="s.css"><img src="a.svg">')
    (folder / "s.css").write_text("p { background: url(a.svg) }")
    (folder / "a.svg").write_text("<svg/>")
    return folder


def test_a_sound_site_passes(site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["check.py", str(site)])
    assert check.main() == 0
    assert "leads somewhere" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ('<a href="gone.html">x</a>', "index.html: no gone.html"),
        ('<a href="b.html#gone">x</a>', "index.html: no place b.html#gone"),
        ('<a href="#gone">x</a>', "index.html: no place #gone"),
        ('<img src="gone.svg">', "index.html: no gone.svg"),
        ('<script src="https://cdn.example.org/x.js"></script>', "index.html: loads https://cdn.example.org/x.js"),
        ('<link href="//fonts.example.org/f.css">', "index.html: loads //fonts.example.org/f.css"),
        ("<style>@import 'https://example.org/f.css'</style>", "index.html: loads https://example.org/f.css"),
        ("<p>\\[x\\]</p>", "index.html: an equation is not MathML"),
        ("<math><mtext>\\big</mtext></math>", "index.html: an equation is not MathML"),
    ],
)
def test_what_is_wrong_is_named(site: Path, page: str, problem: str) -> None:
    (site / "index.html").write_text(page)
    assert check.problems(site) == [problem]


def test_a_style_sheet_from_elsewhere_and_an_empty_folder_are_named(site: Path, tmp_path: Path) -> None:
    (site / "s.css").write_text("@font-face { src: url('https://example.org/f.woff2') }")
    assert check.problems(site) == ["s.css: loads https://example.org/f.woff2"]
    (tmp_path / "empty").mkdir()
    assert check.problems(tmp_path / "empty") == [f"{tmp_path / 'empty'}: no page"]
