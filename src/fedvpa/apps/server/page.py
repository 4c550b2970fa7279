"""The page at /docs: what can be asked, written by the service itself from its OpenAPI description.

FastAPI's own page loads Swagger UI from a CDN. This one loads nothing, runs no script and needs no network; shipping
Swagger UI instead would be 1.5 MB of somebody else's script to keep up to date. /openapi.json is there for such tools.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}

_PAGE = Path(__file__).with_name("page.html.j2")


def render(openapi: dict[str, Any]) -> str:
    """The page of an OpenAPI description."""
    operations = [_operation(path, *item) for path, methods in openapi["paths"].items() for item in methods.items()]
    schemas = [_schema(*item) for item in sorted(openapi["components"]["schemas"].items())]
    info = openapi["info"]
    page = Environment(autoescape=True).from_string(_PAGE.read_text(encoding="utf-8"))
    return page.render(title=info["title"], about=info["description"], operations=operations, schemas=schemas)


def _operation(path: str, method: str, o: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": method.upper(),
        "path": path,
        "about": o.get("description", o.get("summary", "")),
        "parameters": [p["name"] for p in o.get("parameters", ())],
        "sent": _reference(o.get("requestBody", {})),
        "got": _reference(next((r for s, r in o["responses"].items() if s.startswith("2")), {})),
        "statuses": ", ".join(sorted(o["responses"])),
    }


def _reference(part: dict[str, Any]) -> str:
    schema = part.get("content", {}).get("application/json", {}).get("schema", {})
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _schema(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    needed = schema.get("required", ())
    fields = [
        {"name": k, "type": _type(v), "needed": k in needed, "about": v.get("description", "")}
        for k, v in schema.get("properties", {}).items()
    ]
    return {"name": name, "about": schema.get("description", ""), "fields": fields}


def _type(v: dict[str, Any]) -> str:
    if "$ref" in v:
        return str(v["$ref"]).rpartition("/")[2]
    if options := v.get("anyOf") or v.get("oneOf"):
        return " or ".join(_type(o) for o in options)
    if "enum" in v:
        return " or ".join(map(str, v["enum"]))
    if v.get("type") == "array":
        return f"list of {_type(v.get('items', {}))}"
    return str(v.get("type", "anything"))
