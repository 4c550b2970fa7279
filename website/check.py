"""Checks a built site: every link and anchor leads somewhere, and no page needs anything from elsewhere.

python website/check.py out/site
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("link", "href")}
"""What a browser fetches by itself."""
FETCHED = re.compile(r"""(?:url\(\s*['"]?|@import\s+['"])((?:https?:)?//[^'")\s]+)""")
UNREADABLE = re.compile(r"\\\(|\\\[|<merror|class=\"arithmatex\"|<m(?:i|o|n|text)[^>]*>\\")
"""An equation that was left as LaTeX, or that could not be read."""


class Document(HTMLParser):
    """The ids, links and loaded addresses of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.ids.add(value)
            elif (tag, name) in LOADED:
                self.loaded.append(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)


def problems(site: Path) -> list[str]:
    """What is wrong, a line each."""
    pages = {path.resolve(): Document(path) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site}: no page"]
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: loads {url}" for url in page.loaded if urlsplit(url).netloc]
        if UNREADABLE.search(path.read_text(encoding="utf-8")):
            found.append(f"{name}: an equation is not MathML")
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or name.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                found.append(f"{name}: no {link}")
            elif parts.fragment and target in pages and not known(pages[target], unquote(parts.fragment)):
                found.append(f"{name}: no place {link}")
    for sheet in [*site.rglob("*.css"), *pages]:
        text = sheet.read_text(encoding="utf-8")
        styles = text if sheet.suffix == ".css" else "".join(re.findall(r"<style.*?</style>", text, re.DOTALL))
        found += [f"{sheet.name}: loads {url}" for url in FETCHED.findall(styles)]
    return found


def known(page: Document, fragment: str) -> bool:
    """Whether a fragment is a place in a page; those that begin with __ are the theme's switches."""
    return fragment in page.ids or fragment.startswith("__") or fragment == ""


def main() -> int:
    found = problems(Path(sys.argv[1]))
    print("\n".join(found) if found else "every link of the site leads somewhere, and nothing is loaded from elsewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
