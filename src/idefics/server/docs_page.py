"""`/docs`: the OpenAPI description as one page of HTML, without scripts and without resources of other hosts."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

PAGE_CSS = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{font-family:ui-monospace,monospace}h2{margin-top:2.5rem;font-size:1.1rem}summary{cursor:pointer}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;"
    "border-bottom:1px solid #ddd}"
)
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
MAX_SHOWN_ENUM_VALUES = 8
SCHEMA_REF_PREFIX = "#/components/schemas/"


def render_docs_page(document: dict[str, Any]) -> str:
    """Renders an OpenAPI description: each route with its fields, then all objects."""
    title = f"{document['info']['title']} {document['info']['version']}"
    routes = (
        _render_route(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    schemas: dict[str, Any] = document.get("components", {}).get("schemas", {})
    schema_sections = (
        f'<h2 id="{escape(name)}"><code>{escape(name)}</code></h2>{_render_description(schema)}{_render_fields(schema)}'
        for name, schema in schemas.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{PAGE_CSS}</style></head><body><h1>{escape(title)}</h1>"
        f'<p>For programs: <a href="openapi.json">openapi.json</a>.</p>{"".join(routes)}'
        f"<h1>Objects</h1>{''.join(schema_sections)}</body></html>"
    )


def _render_route(method: str, path: str, operation: dict[str, Any]) -> str:
    """A section for a route: its description, the fields of its body and a table of its responses."""
    bodies = operation.get("requestBody", {}).get("content", {})
    body_html = "".join(
        f"<p>Body, <code>{escape(kind)}</code>: {_render_schema_type(body['schema'])}</p>"
        + _render_fields(body["schema"])
        for kind, body in bodies.items()
    )
    response_rows = "".join(
        _render_response(status, answer) for status, answer in operation.get("responses", {}).items()
    )
    route_html = (
        f"<h2><code>{method.upper()} {escape(path)}</code></h2>{_render_description(operation)}{body_html}"
    )
    return f"{route_html}<details><summary>Answers</summary><table>{response_rows}</table></details>"


def _render_response(status: str, response: dict[str, Any]) -> str:
    """A row of the table of responses: status, description and type of the body."""
    contents = [one for one in response.get("content", {}).values() if "schema" in one]
    schema_types = ", ".join(
        f"events: {_render_schema_type(one['itemSchema']['properties']['data']['contentSchema'])}"
        if "itemSchema" in one
        else _render_schema_type(one["schema"])
        for one in contents
    )
    text = escape(response.get("description", ""))
    return f"<tr><td><code>{escape(status)}</code></td><td>{text}</td><td>{schema_types}</td></tr>"


def _render_description(described: dict[str, Any]) -> str:
    """The description of a route or schema as a paragraph; empty if it has none."""
    return f"<p>{escape(described['description'])}</p>" if described.get("description") else ""


def _render_fields(schema: dict[str, Any]) -> str:
    """A table of an object's fields; empty if it has none."""
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in required else ''}</td>"
        f"<td>{_render_schema_type(field)}</td><td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    return f"<table><tr><th>Field</th><th>Value</th><th></th></tr>{rows}</table>" if rows else ""


def _render_schema_type(schema: dict[str, Any]) -> str:
    """The values that a schema allows, as a short piece of HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(SCHEMA_REF_PREFIX))
        return f'<a href="#{name}"><code>{name}</code></a>'
    if "const" in schema:
        return f"<code>{escape(repr(schema['const']))}</code>"
    if "enum" in schema:
        shown_values = [
            f"<code>{escape(repr(value))}</code>" for value in schema["enum"][:MAX_SHOWN_ENUM_VALUES]
        ]
        return " | ".join([*shown_values, *(["..."] if len(schema["enum"]) > MAX_SHOWN_ENUM_VALUES else [])])
    for combinator in ("anyOf", "oneOf", "allOf"):
        if combinator in schema:
            return " | ".join(dict.fromkeys(_render_schema_type(one) for one in schema[combinator]))
    kind = schema.get("type", "any")
    if kind == "array":
        kind = f"list of {_render_schema_type(schema['items'])}" if "items" in schema else "list"
    else:
        kind = escape(str(kind))
    return kind + "".join(_render_limits(schema))


def _render_limits(schema: dict[str, Any]) -> Iterator[str]:
    """Yields the bounds and the default of a value, such as " ≥ 1"."""
    symbol_by_keyword = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    for name, sign in symbol_by_keyword.items():
        if name in schema:
            yield f" {escape(sign)} {schema[name]}"
    if "default" in schema and schema["default"] is not None:
        yield f", default {escape(repr(schema['default']))}"
