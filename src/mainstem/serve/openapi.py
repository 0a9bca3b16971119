"""The API's documents. Litestar knows the paths, the wire structs know the bodies; here the two meet."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from litestar import Litestar, Request
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin

from mainstem.serve.faults import FaultBody
from mainstem.serve.page import render

__all__ = ["document", "openapi_config"]

_REFUSALS = {"400": "Cannot be read.", "422": "A field breaks the contract.", "503": "Not now; see Retry-After."}
_MANY_ACCEPTED = {"413": "More than is accepted at once."}


class _Page(OpenAPIRenderPlugin):
    """`/docs`: the document as one plain page that loads nothing from anywhere."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return render(document(request.app))


class _Document(OpenAPIRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return msgspec.json.encode(document(request.app))


def openapi_config() -> OpenAPIConfig:
    """Litestar's part: paths, methods, summaries from the handlers' docstrings."""
    return OpenAPIConfig(
        title="Mainstem",
        version="1",
        description="Events and entities in, slates out.",
        path="/docs",
        render_plugins=[_Page(path="/"), _Document(path="/openapi.json", media_type="application/json")],  # type: ignore[arg-type]
        use_handler_docstrings=True,
    )


def document(app: Litestar) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `app`: made once, then kept."""
    kept: dict[str, Any] | None = app.state.get("openapi")
    if kept is None:
        kept = app.state["openapi"] = _with_wire(app.openapi_schema.to_schema(), app)
    return kept


def _with_wire(schema: dict[str, Any], app: Litestar) -> dict[str, Any]:
    """Adds what the handlers' `opt` says of bodies, query strings and answers."""
    handlers = [
        (route.path_format, method.lower(), handler)
        for route in app.routes
        if hasattr(route, "route_handler_map")
        for method, (handler, _) in route.route_handler_map.items()
        if handler.opt.keys() & {"body", "query", "answer", "text"}
    ]
    types: list[Any] = [FaultBody]
    for _, _, handler in handlers:
        types += [*handler.opt.get("body", ()), *(handler.opt[n] for n in ("query", "answer") if n in handler.opt)]
    shapes, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    # `list[...]` types hash and compare by value, so each type finds its own shape.
    shape_of = dict(zip(types, shapes, strict=True))
    schema.setdefault("components", {})["schemas"] = {
        name: shape for name, shape in components.items() if not name.endswith("Query")
    }
    for path, method, handler in handlers:
        operation = schema["paths"][path][method]
        opt = handler.opt
        operation["summary"] = operation.get("description", "")
        parameters = [_segment(name) for name in re.findall(r"{(\w+)}", path)]
        if "query" in opt:
            parameters += _parameters(components[opt["query"].__name__])
        if parameters:
            operation["parameters"] = parameters
        if "body" in opt:
            forms = [shape_of[form] for form in opt["body"]]
            body = forms[0] if len(forms) == 1 else {"anyOf": forms}
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
        good = next(code for code in operation["responses"] if code.startswith("2"))
        content = {opt["text"]: {"schema": {"type": "string"}}} if "text" in opt else _json(shape_of[opt["answer"]])
        operation["responses"] = {good: {"description": "Done.", "content": content}}
        if path.startswith("/v1/"):
            refusals = _REFUSALS | (_MANY_ACCEPTED if "body" in opt else {})
            for code, words in sorted(refusals.items()):
                operation["responses"][code] = {"description": words, "content": _json(shape_of[FaultBody])}
    return schema


def _json(shape: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": shape}}


def _segment(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _parameters(shape: dict[str, Any]) -> list[dict[str, Any]]:
    required = shape.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": form}
        for name, form in shape["properties"].items()
    ]
