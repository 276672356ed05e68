"""`/docs`: the API's description as one page of HTML, without scripts, and without anything from another host."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{font-family:ui-monospace,monospace}h2{margin-top:2.5rem;font-size:1.1rem}summary{cursor:pointer}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;"
    "border-bottom:1px solid #ddd}"
)
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
MOST_VALUES = 8  # of an enumeration that are written out
REF = "#/components/schemas/"


def docs_page(document: dict[str, Any]) -> str:
    """The page of an OpenAPI description: each route with its fields, then the objects that these are made of."""
    title = f"{document['info']['title']} {document['info']['version']}"
    routes = (
        _route(method, path, said)
        for path, methods in document["paths"].items()
        for method, said in methods.items()
    )
    schemas: dict[str, Any] = document.get("components", {}).get("schemas", {})
    objects = (
        f'<h2 id="{escape(name)}"><code>{escape(name)}</code></h2>{_text(schema)}{_fields(schema)}'
        for name, schema in schemas.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f'<p>For programs: <a href="openapi.json">openapi.json</a>.</p>{"".join(routes)}'
        f"<h1>Objects</h1>{''.join(objects)}</body></html>"
    )


def _route(method: str, path: str, said: dict[str, Any]) -> str:
    bodies = said.get("requestBody", {}).get("content", {})
    asked = "".join(
        f"<p>Body, <code>{escape(kind)}</code>: {_kind(body['schema'])}</p>{_fields(body['schema'])}"
        for kind, body in bodies.items()
    )
    answers = "".join(_answer(status, answer) for status, answer in said.get("responses", {}).items())
    head = f"<h2><code>{method.upper()} {escape(path)}</code></h2>{_text(said)}{asked}"
    return f"{head}<details><summary>Answers</summary><table>{answers}</table></details>"


def _answer(status: str, said: dict[str, Any]) -> str:
    kinds = ", ".join(_kind(one["schema"]) for one in said.get("content", {}).values() if "schema" in one)
    text = escape(said.get("description", ""))
    return f"<tr><td><code>{escape(status)}</code></td><td>{text}</td><td>{kinds}</td></tr>"


def _text(said: dict[str, Any]) -> str:
    return f"<p>{escape(said['description'])}</p>" if said.get("description") else ""


def _fields(schema: dict[str, Any]) -> str:
    """A table of an object's own fields; "" for what has none."""
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in required else ''}</td>"
        f"<td>{_kind(field)}</td><td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    return f"<table><tr><th>Field</th><th>Value</th><th></th></tr>{rows}</table>" if rows else ""


def _kind(schema: dict[str, Any]) -> str:
    """What values a schema allows, in a few words of HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(REF))
        return f'<a href="#{name}"><code>{name}</code></a>'
    if "const" in schema:
        return f"<code>{escape(repr(schema['const']))}</code>"
    if "enum" in schema:
        shown = [f"<code>{escape(repr(value))}</code>" for value in schema["enum"][:MOST_VALUES]]
        return " | ".join([*shown, *(["..."] if len(schema["enum"]) > MOST_VALUES else [])])
    for joined in ("anyOf", "oneOf", "allOf"):
        if joined in schema:
            return " | ".join(dict.fromkeys(_kind(one) for one in schema[joined]))
    kind = schema.get("type", "any")
    if kind == "array":
        kind = f"list of {_kind(schema['items'])}" if "items" in schema else "list"
    else:
        kind = escape(str(kind))
    return kind + "".join(_limits(schema))


def _limits(schema: dict[str, Any]) -> Iterator[str]:
    named = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    for name, sign in named.items():
        if name in schema:
            yield f" {escape(sign)} {schema[name]}"
    if "default" in schema and schema["default"] is not None:
        yield f", default {escape(repr(schema['default']))}"
