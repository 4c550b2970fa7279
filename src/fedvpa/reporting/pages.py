"""What every HTML page is made with: one set of template rules, and one style sheet inside the page."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup


def template(name: str) -> Template:
    """A template of this package, such as ``report.html.j2``; it finds the style sheet as `css`."""
    environment = Environment(
        loader=PackageLoader("fedvpa.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["css"] = Markup(files("fedvpa.reporting").joinpath("report.css").read_text(encoding="utf-8"))
    return environment.get_template(name)
