"""Reading `mainstem.yaml`: errors that name the line, the editor schema, the commented template.

A mapping that you give (`events`, `heads`, `entities`, `canvases`, `sources` ...) replaces the default
mapping whole; within one entry, what you leave out keeps its default. An empty value (`features:` with
nothing after it, `home:` in canvases) means the defaults.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mainstem.schema.config import Config, Mismatch, StorageConfig
from mainstem.schema.errors import ConfigError

__all__ = ["default_of", "flow", "inner", "json_schema", "load", "nearest", "parse", "storage_urls", "template"]

Place = tuple[str | int, ...]

_KEY_IS_NO_TEXT = "a key must be text"


def load(path: str | Path) -> Config:
    """The configuration in the file at `path`; the defaults where there is no such file.

    A relative `data` is resolved against the file's folder. Raises ConfigError, one line per problem:
    `mainstem.yaml:12: canvases.home.lmit: unknown key; did you mean 'limit'? allowed: ...`.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    config = parse(text, str(path))
    return config.model_copy(update={"data": str((path.resolve().parent / Path(config.data).expanduser()).resolve())})


def parse(text: str, name: str = "mainstem.yaml") -> Config:
    """The configuration in `text`; `name` is what errors call the file. Raises ConfigError."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        found: object = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{name}:{mark.line + 1 if mark else 1}: not YAML: {what}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name}:1: not YAML: {error}") from error
    if node is None or found is None:
        return Config()
    lines: dict[Place, int] = {}
    try:
        problems = list(_walk(node, (), lines))
    except RecursionError as error:
        raise ConfigError(f"{name}:1: an anchor refers to itself") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{name}:1: must be a mapping of keys to values; keys: {', '.join(Config.model_fields)}")
    if not any(_KEY_IS_NO_TEXT in text for _, text in problems):  # such keys have no line for what pydantic says
        given = _without_empty(found, Config)
        try:
            config = Config.model_validate(given)
            if not problems:
                return config
        except ValidationError as error:
            details = [*error.errors(), *_behind(error.errors(), given)]
            problems += [problem for detail in details for problem in _explain(detail, lines)]
    raise ConfigError("\n".join(f"{name}:{line}: {text}" for line, text in sorted(set(problems))))


def _walk(node: yaml.Node, path: Place, lines: dict[Place, int]) -> Iterator[tuple[int, str]]:
    """Note the line of every path below `node`; the problems that pydantic cannot see."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _walk(value, (*path, i), lines)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):  # safe_load refuses it
                continue
            place = (*path, key.value)
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                yield line, f"{_dotted(place)}: {_KEY_IS_NO_TEXT}; write it in quotes: '{key.value}'"
            if key.value in seen:
                yield line, f"{_dotted(place)}: given twice, first in line {seen[key.value]}"
            seen[key.value] = line
            lines[place] = line
            yield from _walk(value, place, lines)


def _behind(details: list[ErrorDetails], given: object) -> list[ErrorDetails]:
    """What does not fit across sections, where entries of a wrong shape kept pydantic from looking.

    The wrong entries are left out for this second look. Where that takes away a name or a reference, what others
    say of it would be noise, and the next run tells.
    """
    paths = [tuple(step for step in detail["loc"] if step != "[key]") for detail in details]
    for path in paths:
        names = path[0] == "entities" or (path[0] in ("events", "heads") and len(path) < 3) if path else True
        if names or len(path) < 2 or path[-1] in ("event", "entity_type"):
            return []
    try:
        # A list with a wrong entry is left out whole: its other entries would change their places.
        wrong = {tuple(itertools.takewhile(lambda step: isinstance(step, str), path)) for path in paths}
        Config.model_validate(_left_out(given, (), wrong))
    except ValidationError as error:
        return [detail for detail in error.errors() if not detail["loc"]]
    return []


def _left_out(value: object, path: Place, wrong: set[Place]) -> object:
    if isinstance(value, dict):
        return {k: _left_out(v, (*path, k), wrong) for k, v in value.items() if (*path, k) not in wrong}
    return value


def _without_empty(value: object, annotation: object) -> object:
    """`value` without the empty entries that stand for the defaults."""
    annotation = inner(annotation)
    if isinstance(value, dict):
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            fields = {k: f.annotation for k, f in annotation.model_fields.items()}
            return {
                k: _without_empty(v, fields.get(k))
                for k, v in value.items()
                if v is not None or _takes_none(fields.get(k))
            }
        if get_origin(annotation) is dict:
            entry = get_args(annotation)[1]
            model = isinstance(entry, type) and issubclass(entry, BaseModel)
            return {k: _without_empty({} if v is None and model else v, entry) for k, v in value.items()}
    return value


def _takes_none(annotation: object) -> bool:
    return type(None) in get_args(annotation)


def inner(annotation: object) -> object:
    """The type without `Annotated` and without `| None`."""
    if get_origin(annotation) is Annotated:
        return inner(get_args(annotation)[0])
    rest = [a for a in get_args(annotation) if a is not type(None)]
    return inner(rest[0]) if _takes_none(annotation) and len(rest) == 1 else annotation


def _at(path: Place) -> object:
    """The type that the configuration has at `path`."""
    annotation: object = Config
    for step in path:
        annotation = inner(annotation)
        arguments = get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(step))
            annotation = field.annotation if field else None
        else:
            annotation = arguments[-1] if arguments else None
    return inner(annotation)


def _explain(detail: ErrorDetails, lines: Mapping[Place, int]) -> Iterator[tuple[int, str]]:
    """(line, text) of each problem in one of pydantic's errors: several only where sections do not fit."""
    raised = detail.get("ctx", {}).get("error")
    found = raised.problems if isinstance(raised, Mismatch) else [_in_words(detail)]
    for path, message in found:
        yield _line(path, lines), f"{_dotted(path)}: {message}{_way_out(path, message, lines)}"


def _in_words(detail: ErrorDetails) -> tuple[Place, str]:
    in_key = "[key]" in detail["loc"]
    path: Place = tuple(step for step in detail["loc"] if step != "[key]")
    message = detail["msg"].removeprefix("Value error, ")
    given = detail["input"]
    if detail["type"] == "extra_forbidden":
        owner = _at(path[:-1])
        allowed = list(owner.model_fields) if isinstance(owner, type) and issubclass(owner, BaseModel) else []
        message = f"unknown key;{nearest(str(path[-1]), allowed)} allowed: {', '.join(allowed)}"
    elif detail["type"] == "literal_error":
        allowed = _choices(path[:-1] if in_key else path, in_key)
        what = f"key {given!r}" if in_key else repr(given)
        message = f"{what} is not allowed;{nearest(str(given), allowed)} allowed: {', '.join(allowed)}"
    elif detail["type"] == "missing":
        message = "is missing"
    elif detail["type"] == "too_short":
        message = "must have one entry at least; leave it out for the default ones"
    elif detail["type"] == "string_pattern_mismatch":
        message = f"{given!r} is not a name; allowed: a small letter, then small letters, digits, _ and -"
    elif detail["type"] != "value_error":
        wanted = {"string_type": "must be text", "dict_type": "must be a mapping", "model_type": "must be a mapping"}
        must = wanted.get(detail["type"], message.replace("Input should be", "must be").replace("valid ", ""))
        message = f"{must}, not {_shown(given)}"
        if detail["type"] == "string_type" and isinstance(given, int | float):
            message += "; put it in quotes, or give a duration its unit, as in 200ms or 30d"
    return path, message


def _choices(path: Place, keys: bool) -> list[str]:
    annotation = _at(path)
    if keys:
        annotation = inner(get_args(annotation)[0])
    return [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []


def _way_out(path: Place, message: str, lines: Mapping[Place, int]) -> str:
    """What may be meant where a name is not among those of another section."""
    match = re.match(r"'(.*)' is not among (?:the )?([\w .-]+): (.*)", message)
    if not match:
        return ""
    near = nearest(match[1], match[3].split(", "))
    hint = f";{near}" if near else ""
    if path[:1] not in lines:
        hint += f"; {path[0]} are the default ones: with your own {match[2]}, give your own {path[0]} too"
    return hint


def nearest(word: str, allowed: Sequence[str]) -> str:
    """` did you mean ...?`, or nothing where no allowed word is near."""
    near = difflib.get_close_matches(word.lower(), allowed, n=1, cutoff=0.6)
    return f" did you mean {near[0]!r}?" if near else ""


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value)


def _line(path: Place, lines: Mapping[Place, int]) -> int:
    """The line of `path`, or of the nearest thing around it that the file holds."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _dotted(path: Place) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".") or "the file"


# ---- what is written from the models -----------------------------------------------------------


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `mainstem.yaml`, for editors."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "mainstem.yaml"}


def storage_urls(config: Config, base: str | Path = ".") -> StorageConfig:
    """`config.storage` with `{data}` filled in: the data directory, absolute; a relative one lies in `base`."""
    data = (Path(base).resolve() / Path(config.data).expanduser()).resolve()
    urls = config.storage.model_dump()
    return StorageConfig(**{name: url.replace("{data}", str(data)) for name, url in urls.items()})


def default_of(field: FieldInfo) -> object:
    """The field's default as plain data; None also where it is required."""
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    return _plain(value)


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_defaults=True)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value


def flow(value: object) -> str:
    """YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()


_HEAD = """\
# The configuration of Mainstem. An empty file works; everything here is the default.
# Lines that start with # and no blank are settings: take the # away to change one.
# Durations are a number and a unit: ms, s, m, h, d, w.
"""


def template() -> str:
    """A commented `mainstem.yaml`. It loads to `Config()`, as it is and with every setting uncommented."""
    parts = [_HEAD]
    for name, field in Config.model_fields.items():
        parts.append("\n")
        parts += _comment(field.description, "")
        kind = inner(field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            parts += _comment(kind.__doc__, "")
            parts.append(f"{name}:\n")
            parts += _settings(kind, "  ")
        elif get_origin(kind) is dict and issubclass(get_args(kind)[1], BaseModel):
            parts += _entries(name, field, get_args(kind)[1])
        else:
            parts.append(f"{'' if name == 'version' else '#'}{name}: {flow(default_of(field))}\n")
    return "".join(parts)


def _comment(text: str | None, indent: str) -> list[str]:
    return [f"{indent}# {line.strip()}\n" for line in (text or "").strip().splitlines() if line.strip()]


def _settings(model: type[BaseModel], indent: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield from _comment(field.description, indent)
        kind = inner(field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _comment(kind.__doc__, indent)
            yield f"{indent}{name}:\n"
            yield from _settings(kind, indent + "  ")
            continue
        if get_origin(kind) is dict and isinstance(entry := get_args(kind)[1], type) and issubclass(entry, BaseModel):
            yield f"{indent}# An entry can hold:\n"
            yield from _keys(entry, indent)
        yield f"{indent}#{name}: {flow(default_of(field))}\n"


def _keys(model: type[BaseModel], indent: str) -> Iterator[str]:
    """What an entry can hold, as comment."""
    for key, inside in model.model_fields.items():
        default = "required" if inside.is_required() else f"default {flow(default_of(inside))}"
        words = " ".join((inside.description or "").split())
        yield f"{indent}#   {key} ({default}){': ' + words if words else ''}\n"


def _entries(name: str, field: FieldInfo, model: type[BaseModel]) -> Iterator[str]:
    """A mapping of named entries: what an entry can hold, as comment, then the default entries."""
    yield from _comment(model.__doc__, "")
    yield "# What you list here replaces these entries whole. An entry can hold:\n"
    yield from _keys(model, "")
    yield f"{name}:\n"
    entries = default_of(field)
    for entry, value in entries.items() if isinstance(entries, dict) else ():
        yield f"  {entry}: {flow(value)}\n"
