"""The page ``/docs``: all paths with their fields, in one piece of HTML that needs nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td,th{border:1px solid #bbb;padding:.2rem .6rem;text-align:left}"
    "code{font-size:.95em}h2{margin-top:2.5rem}"
)


def page(schema: Mapping[str, Any]) -> str:
    """An OpenAPI description as HTML.

    Args:
        schema: as FastAPI makes it.
    """
    info = schema["info"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}</title>",
        f"<style>{_STYLE}</style><h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info.get('summary', ''))} As JSON: <a href=openapi.json>openapi.json</a></p>",
    ]
    for path, methods in schema["paths"].items():
        for method, told in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(told.get('description', ''))}</p>{_asked(schema, told)}{_answered(schema, told)}")
    errors = {"$ref": "#/components/schemas/ErrorResponse"}
    return "".join([*parts, f"<h2>What is refused</h2>{_fields(schema, errors)}"])


def _asked(schema: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    rows = [_row(p["name"] + " (header)", p.get("schema", {}), False, schema) for p in told.get("parameters", ())]
    head = f"<table>{''.join(rows)}</table>" if rows else ""
    content = told.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    return f"<h3>Request</h3>{head}{_fields(schema, content)}" if content else head


def _answered(schema: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(status)}<td>{escape(answer.get('description', ''))}"
        for status, answer in told["responses"].items()
    )
    content = told["responses"]["200"].get("content", {}).get("application/json", {}).get("schema")
    return f"<h3>Answers</h3><table>{rows}</table>{_fields(schema, content) if content else ''}"


def _fields(schema: Mapping[str, Any], content: Mapping[str, Any], seen: tuple[str, ...] = ()) -> str:
    """The fields of an object, and of the objects in it."""
    name = str(content.get("$ref", "")).rpartition("/")[2]
    if not name or name in seen:
        return ""
    found = schema["components"]["schemas"][name]
    fields, required = found.get("properties", {}), found.get("required", ())
    rows = "".join(_row(field, own, field in required, schema) for field, own in fields.items())
    inner = "".join(_fields(schema, part, (*seen, name)) for own in fields.values() for part in _parts(own))
    return f"<h4>{escape(name)}</h4><p>{escape(found.get('description', ''))}</p><table>{rows}</table>{inner}"


def _parts(own: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [own, *(part for inner in (own.get("items"), *own.get("anyOf", ())) if inner for part in _parts(inner))]


def _row(name: str, own: Mapping[str, Any], required: bool, schema: Mapping[str, Any]) -> str:
    default = f" Default: <code>{escape(json.dumps(own['default']))}</code>." if "default" in own else ""
    must = " Required." if required else ""
    said = escape(own.get("description", ""))
    return f"<tr><td><code>{escape(name)}</code><td>{escape(_type(own))}<td>{said}{must}{default}"


def _type(own: Mapping[str, Any]) -> str:
    if "$ref" in own:
        return str(own["$ref"]).rpartition("/")[2]
    if "anyOf" in own:
        return " or ".join(_type(part) for part in own["anyOf"])
    if own.get("type") == "array":
        return f"list of {_type(own['items'])}"
    if own.get("type") == "object" and isinstance(own.get("additionalProperties"), Mapping):
        return f"object of {_type(own['additionalProperties'])}"
    return str(own.get("type", "anything"))
