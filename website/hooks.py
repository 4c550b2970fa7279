"""What MkDocs does besides: equations as MathML, and copies of files of the repository that pages link to.

MathML is written while the site is built (latex2mathml), since browsers show it without a script, a font or a network;
MathJax and KaTeX would be some hundred kilobytes of either in every checkout.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")
"""A link of a page in docs/ to a file elsewhere in the repository."""
MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
SIZES = re.compile(r"\\[bB]ig+[lr]?(?=[\\(\[)\]|])")
"""Sizes of brackets, which MathML finds out for itself."""
COPIES = "repository"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds each file outside docs/ to which a page links, and the style sheet."""
    root = Path(config.docs_dir).parent
    wanted: set[str] = set()
    for page in files.documentation_pages():
        wanted |= set(OUTSIDE.findall(page.content_string))
    for name in sorted(wanted):
        if (root / name).is_file():
            files.append(File.generated(config, f"{COPIES}/{name}", abs_src_path=str(root / name)))
    files.append(File.generated(config, "theme.css", abs_src_path=str(root / "website" / "theme.css")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Points those links to the copies."""
    return OUTSIDE.sub(rf"]({COPIES}/\1", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Writes the page's equations as MathML."""
    return MATH.sub(lambda m: mathml(html.unescape(m[2]), "block" if m[1] == "div" else "inline"), content)


def mathml(latex: str, display: str) -> str:
    """An equation as MathML; the LaTeX stays as what a text-only reader gets."""
    return convert(SIZES.sub("", latex).strip(), display=display).replace(
        "<math ", f'<math alttext="{html.escape(latex.strip())}" ', 1
    )
