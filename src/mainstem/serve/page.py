"""Two pages without scripts, fonts or anything else from elsewhere: they work on a machine without a network."""

from __future__ import annotations

import json
from html import escape
from typing import Any

__all__ = ["WELCOME", "render"]

_STYLE = """<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 14px/1.4 ui-monospace, monospace }
pre { overflow-x: auto; padding: .6rem .8rem; border: 1px solid #8885; border-radius: 4px }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .2rem .8rem .2rem 0;
vertical-align: top; border-bottom: 1px solid #8883 }
h2 { margin-top: 2.2rem } h2 b { display: inline-block; min-width: 4.5rem } summary { cursor: pointer }
</style>"""


def _page(title: str, body: str) -> bytes:
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return f"{head}{view}{_STYLE}</head><body>{body}</body></html>\n".encode()


WELCOME = _page(
    "Mainstem",
    "<h1>Mainstem</h1><p>Events and entities in, slates out.</p><ul>"
    '<li><a href="/docs">The API</a>, also as <a href="/openapi.json">OpenAPI document</a></li>'
    '<li><a href="/readyz">Is it ready?</a> <a href="/healthz">Is it alive?</a></li>'
    '<li><a href="/metrics">Metrics</a></li>'
    '<li><a href="/v1/users/1/slate?canvas=home">A slate for user 1</a></li></ul>',
)


def render(document: dict[str, Any]) -> bytes:
    """An OpenAPI document as one HTML page: each operation with its fields and a `curl` line."""
    parts = [f"<h1>{escape(document['info']['title'])}</h1><p>{escape(document['info'].get('description', ''))}</p>"]
    parts.append('<p>The same as <a href="/openapi.json">OpenAPI document</a>, for code generators and API tools.</p>')
    for path, methods in document["paths"].items():
        parts += [_operation(path, method, operation) for method, operation in methods.items()]
    parts.append("<h1>Forms</h1>")
    for name, shape in sorted(document["components"]["schemas"].items()):
        parts.append(f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(shape.get("description", ""))}</p>')
        parts.append(_fields(shape.get("properties", {}), shape.get("required", ())))
    return _page("Mainstem: the API", "".join(parts))


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"<h2><b>{method.upper()}</b> <code>{escape(path)}</code></h2>"]
    parts.append(f"<p>{escape(operation.get('summary', ''))}</p>")
    if parameters := operation.get("parameters"):
        required = [parameter["name"] for parameter in parameters if parameter.get("required")]
        parts.append(_fields({parameter["name"]: parameter["schema"] for parameter in parameters}, required))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body:
        parts.append(f"<p>Body: {_type(body)}</p>")
    for code, answer in operation.get("responses", {}).items():
        media: list[dict[str, Any]] = list(answer.get("content", {}).values())
        shape = media[0].get("schema", {}) if media else {}
        parts.append(f"<div><code>{code}</code> {escape(answer.get('description', ''))} {_type(shape)}</div>")
    parts.append(f"<pre>{escape(_curl(path, method, body))}</pre>")
    return "".join(parts)


def _fields(fields: dict[str, Any], required: Any) -> str:
    rows = [
        f"<tr><td><code>{escape(name)}</code></td><td>{_type(shape)}</td>"
        f"<td>{'required' if name in required else escape(_default(shape))}</td></tr>"
        for name, shape in fields.items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _default(shape: dict[str, Any]) -> str:
    return f"default {json.dumps(shape['default'])}" if shape.get("default") is not None else ""


def _type(shape: dict[str, Any]) -> str:
    if "$ref" in shape:
        name = escape(shape["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in shape:
        return " or ".join(_type(form) for form in shape["anyOf"])
    if shape.get("type") == "array":
        return f"list of {_type(shape.get('items', {}))}"
    if shape.get("type") == "object" and isinstance(shape.get("additionalProperties"), dict):
        return f"object of {_type(shape['additionalProperties'])}"
    return escape(str(shape.get("type", "")))


def _curl(path: str, method: str, body: dict[str, Any] | None) -> str:
    flag = "" if method == "get" else f"-X {method.upper()} "
    for name in ("{entity_type}", "{entity_id}", "{user_id}", "{item_id}"):
        path = path.replace(name, "item" if name == "{entity_type}" else "1")
    line = f"curl {flag}http://127.0.0.1:8080{path}"
    if body is None:
        return line
    first = body.get("anyOf", [body])[0]
    name = first.get("$ref", "").rsplit("/", 1)[-1]
    return f"{line} -d '{_EXAMPLES.get(name, '{}')}'"


_EXAMPLES = {
    "EventIn": '{"user": 1, "kind": "purchase", "entity": 7}',
    "EntityIn": '{"entity": 7, "attributes": {"category": "tea"}}',
    "EntityPatchIn": '{"stock": 3}',
    "SlateIn": '{"context": {"canvas": "home", "user": 1}, "limit": 10}',
}
