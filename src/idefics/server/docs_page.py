"""`/docs`: the OpenAPI description as one page of HTML, without scripts and without resources of other hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
ENVIRONMENT.filters["repr"] = repr


def render_docs_page(document: dict[str, Any]) -> str:
    """Renders an OpenAPI description: each route with its fields, then all objects."""
    return ENVIRONMENT.get_template("docs_page.html.jinja").render(document)
