"""Bytes and query strings -> wire structs, or a Fault that names the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from mainstem.serve.faults import Fault, nearest

__all__ = ["Shape", "first_byte", "path_id", "query_of"]

T = TypeVar("T")

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at (?:key in )?`(?P<path>\$.*)`)?$", re.DOTALL)
_EXPECTED = re.compile(r"^Expected `(?P<wanted>[^`]+)`(?P<limits>[^,]*)(?:, got `(?P<got>[^`]+)`)?$")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_WORDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "array": "a list"}


class Shape(Generic[T]):
    """One JSON form: the type to decode, and under which name errors speak of it.

    `inside` maps a path without places (`""`, `"[]"`, `".context"`) to the struct that lives there: its
    field names are what an unknown field is compared with.
    """

    def __init__(self, type_: Any, root: str, inside: Mapping[str, type[msgspec.Struct]]) -> None:
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(type_)
        self._root = root
        self._inside = {path: struct.__struct_fields__ for path, struct in inside.items()}

    def decode(self, raw: bytes | msgspec.Raw) -> T:
        """Raises Fault: 400 for what is not JSON in UTF-8, 422 for what has another form."""
        try:
            return self._decoder.decode(raw)
        except msgspec.ValidationError as error:
            raise _named(str(error), self._root, self._inside) from None
        except msgspec.DecodeError as error:
            raise Fault("body", f"is not JSON: {_plain(str(error))}", status=400) from None
        except UnicodeDecodeError:
            raise Fault("body", "is not UTF-8", status=400) from None
        except RecursionError:
            raise Fault("body", "is nested too deeply", status=400) from None


def _plain(message: str) -> str:
    return message.removeprefix("JSON is malformed: ").replace("Input data was truncated", "it ends too early")


def _named(message: str, root: str, inside: Mapping[str, tuple[str, ...]]) -> Fault:
    """msgspec's ``Expected `str`, got `int` - at `$[3].user` `` -> Fault("events[3].user", "must be text ...")."""
    match = _WHERE.match(message)
    what, path = (match["what"], match["path"] or "$") if match else (message, "$")
    tail = path.removeprefix("$").replace("[...]", "")
    place = re.sub(r"\[\d+\]", "[]", tail)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        known = inside.get(place, ())
        hint = nearest(unknown[1], known) or f"known: {', '.join(known)}"
        return Fault(_join(root, f"{tail}.{unknown[1][:80]}"), "is not known here", hint=hint)
    if missing := re.fullmatch(r"Object missing required field `(.*)`", what):
        return Fault(_join(root, f"{tail}.{missing[1]}"), "is required")
    return Fault(_join(root, tail), _reason(what))


def _join(root: str, tail: str) -> str:
    return (root + tail).lstrip(".") or "body"


def _reason(what: str) -> str:
    match = _EXPECTED.match(what)
    if not match:
        return what[:1].lower() + what[1:].replace("`", "")
    wanted = " or ".join(_WORDS.get(name, name) for name in match["wanted"].split(" | "))
    got = f", not {_WORDS.get(match['got'], match['got'])}" if match["got"] else ""
    return f"must be {wanted}{match['limits']}{got}"


def first_byte(raw: bytes) -> bytes:
    """The first byte that is not white space; empty where there is none."""
    return raw.lstrip(b" \t\r\n")[:1] if raw[:1] in b" \t\r\n" else raw[:1]


def path_id(text: str, field: str = "id") -> str:
    """One percent-encoded segment of the path -> text. `%2F` is a slash inside an id. Raises Fault."""
    if _BAD_PERCENT.search(text):
        raise Fault(field, "has a % that no two hexadecimal digits follow; write %25 for a %", status=400)
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise Fault(field, "is not percent-encoded UTF-8", status=400) from None


def query_of(query: bytes, shape: type[T]) -> T:
    """The query string as a struct; each name at most once, none unknown. Raises Fault."""
    fields: tuple[str, ...] = shape.__struct_fields__  # type: ignore[attr-defined]
    try:
        text = query.decode("ascii")
        if _BAD_PERCENT.search(text):
            raise Fault("query", "has a % that no two hexadecimal digits follow; write %25 for a %", status=400)
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=100)
    except UnicodeDecodeError:
        raise Fault("query", "is not percent-encoded UTF-8", status=400) from None
    except ValueError as error:
        raise error if isinstance(error, Fault) else Fault("query", "has too many fields", status=400) from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if not name:
            raise Fault("query", "has a value without a name")
        if name in given:
            raise Fault(name[:80], "is given twice")
        given[name] = value
    try:
        return msgspec.convert(given, shape, strict=False)
    except msgspec.ValidationError as error:
        raise _named(str(error), "", {"": fields}) from None
