"""The configuration reference: Markdown made from the models, so that it cannot say anything else."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mainstem.schema.config import Config
from mainstem.schema.config_file import default_of, flow, inner
from mainstem.schema.section import Duration

__all__ = ["markdown"]

_HEAD = """\
# Configuration

`mainstem init` writes a commented `mainstem.yaml`; an empty or missing file means the defaults below.

- An error names the file, the line, the key, what is allowed and the nearest spelling.
- A mapping of names that you give (`events`, `heads`, `entities`, `canvases`, `sources` ...) **replaces the
  default mapping whole**; within one entry, a key you leave out keeps its default. With your own `events`,
  give your own `heads` too: the default head is labelled by `purchase`.
- An empty value (`features:` with nothing after it, `home:` in `canvases`) means the defaults.
- A key given twice is refused, with both lines.
- Durations are a number and one of `ms`, `s`, `m`, `h`, `d`, `w`, as in `200ms` or `30d`.
- `mainstem config check` reads a file and says what is wrong; `mainstem config schema` prints the JSON Schema, for
  completion and checks in editors.

<!-- Made by mainstem.schema.config_docs from the models; do not edit by hand. -->
"""


def markdown() -> str:
    """The text of docs/configuration.md."""
    return _HEAD + "".join(_section("", "The file", Config))


def _section(path: str, title: str, model: type[BaseModel]) -> Iterator[str]:
    """A heading, the model's own words, a table of its keys, then the sections of the models within."""
    yield f"\n## {title}\n\n{(model.__doc__ or '').strip()}\n".replace("\n\n\n", "\n\n")
    yield "\n| key | type | default | meaning |\n|---|---|---|---|\n"
    below: list[tuple[str, type[BaseModel], str]] = []
    for name, field in model.model_fields.items():
        full, found = f"{path}.{name}".lstrip("."), _model_in(field.annotation)
        words = " ".join((field.description or "").split()).replace("|", "\\|")
        default = "required" if field.is_required() else f"`{flow(default_of(field))}`"
        if found and not get_args(inner(field.annotation)):
            default = "see below"
        if found:
            below.append((full, found[0], found[1]))
            words = " ".join([*([words] if words else []), f"See [{full}{found[1]}](#{_anchor(full + found[1])})."])
        yield f"| `{name}` | {_type(field.annotation, field)} | {default} | {words} |\n"
    for full, inside, suffix in below:
        yield from _section(full + suffix, f"`{full}{suffix}`", inside)


def _model_in(annotation: object) -> tuple[type[BaseModel], str] | None:
    """The model that the type is (suffix none) or that it maps names to (suffix `.NAME`)."""
    annotation = inner(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    if get_origin(annotation) is dict:
        entry = inner(get_args(annotation)[1])
        if isinstance(entry, type) and issubclass(entry, BaseModel):
            return entry, ".NAME"
    return None


def _anchor(title: str) -> str:
    """As common Markdown renderers make it: small letters, digits, `-` and `_`."""
    return "".join(c for c in title.lower() if c.isalnum() or c in "-_")


def _type(annotation: object, field: FieldInfo | None = None) -> str:
    bounds = _bounds(field.metadata if field else [])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("nothing" if a is type(None) else _type(a) for a in arguments) + bounds
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"{_type(arguments[0])} -> {_type(arguments[1])}"
    if origin is Annotated:
        return "duration" if annotation == Duration else _type(arguments[0])
    if field and get_args(Duration)[1] in field.metadata:
        return "duration"
    return {str: "text", int: "whole number", float: "number", bool: "true / false"}.get(annotation, "text") + bounds  # type: ignore[call-overload, no-any-return]


def _bounds(metadata: list[object]) -> str:
    signs: dict[type, tuple[str, str]] = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}
    parts = [(signs[type(bound)], bound) for bound in metadata if type(bound) in signs]
    text = ", ".join(f"{sign} {getattr(bound, name)}" for (sign, name), bound in parts)
    return f" {text}" if text else ""
