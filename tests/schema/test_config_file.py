"""mainstem.yaml: defaults, every kind of error with its line, the template, the schema, the reference."""

# ruff: noqa: E501 (one case a line)
from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from mainstem.schema.config import CanvasConfig, Config
from mainstem.schema.config_docs import markdown
from mainstem.schema.config_file import inner, json_schema, load, parse, storage_urls, template
from mainstem.schema.errors import ConfigError


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "version: 1\n", "features:\nevents:\ncanvases:\n", "{}"])
def test_nothing_means_the_defaults(text: str) -> None:
    assert parse(text) == Config()


def test_a_missing_file_means_the_defaults_beside_it(tmp_path: Path) -> None:
    config = load(tmp_path / "mainstem.yaml")
    assert config == Config(data=str(tmp_path / "mainstem-data"))


def test_data_is_resolved_against_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "shop" / "mainstem.yaml"
    file.parent.mkdir()
    file.write_text("data: ../there\n")
    monkeypatch.chdir(file.parent)
    assert load("mainstem.yaml").data == load(file).data == str(tmp_path / "there")
    file.write_text("data: /somewhere\n")
    assert load(file).data == "/somewhere"
    monkeypatch.setenv("HOME", str(tmp_path))
    file.write_text("data: ~/d\n")
    assert load(file).data == str(tmp_path / "d")


def test_storage_urls_name_the_data_directory(tmp_path: Path) -> None:
    urls = storage_urls(Config(data="here"), tmp_path)
    assert urls.log == f"sqlite:///{tmp_path}/here/log.sqlite"
    assert "{data}" not in "".join(urls.model_dump().values())
    elsewhere = Config.model_validate({"storage": {"log": "sqlite:////elsewhere/log.sqlite"}})
    assert storage_urls(elsewhere, tmp_path).log == "sqlite:////elsewhere/log.sqlite"


def test_what_is_given_replaces_whole_mappings_and_keeps_the_rest_of_an_entry() -> None:
    config = parse("canvases:\n  home: {limit: 10}\n  front:\nfeatures:\n  history: 7\n")
    assert config.canvases == {"home": CanvasConfig(limit=10), "front": CanvasConfig()}
    assert (config.features.history, config.features.neighbours) == (7, 64)
    assert config.events == Config().events


def test_a_history_is_read_no_further_than_it_is_kept() -> None:
    assert parse("model: {history: {length: 70}}\n").history_length() == 70
    assert parse("features: {history: 60}\nmodel: {history: {length: 70}}\n").history_length() == 60


ERRORS = [
    ("canvases:\n  home:\n    lmit: 3\n", 3, r"canvases\.home\.lmit: unknown key; did you mean 'limit'\? allowed: .*limit, .*fallback, .*gate$"),
    ("serve: {}\nServe: 3\n", 2, r"Serve: unknown key; did you mean 'serve'\?"),
    ("zzz: 3\n", 1, r"zzz: unknown key; allowed: version, name"),
    ("canvases:\n  home:\n    repeat: alow\n", 3, r"repeat: 'alow' is not allowed; did you mean 'allow'\? allowed: allow, new_only$"),
    ("canvases:\n  home:\n    fallback:\n      - kept\n      - popul\n", 5, r"fallback\[1\]: 'popul' is not allowed; did you mean 'popular'\?"),
    ("canvases:\n  home:\n    sources:\n      two_towr: {}\n", 4, r"sources\.two_towr: key 'two_towr' is not allowed; did you mean 'two_tower'\?"),
    ("entities:\n  item:\n    attributes: {a: catgory}\n", 3, r"'catgory' is not allowed; did you mean 'category'\? allowed: category, number, text, tags$"),
    ("version: 2\n", 1, r"version: 2 is not allowed; allowed: 1$"),
    ("serve:\n  port: 99999999\n", 2, r"serve\.port: must be less than or equal to 65535, not 99999999$"),
    ("serve:\n  port: high\n", 2, r"serve\.port: must be a integer.*not 'high'$"),
    ("\ncanvases: {home: 3}\n", 2, r"canvases\.home: must be a mapping, not 3$"),
    ("canvases: [home]\n", 1, r"canvases: must be a mapping, not a list$"),
    ("features:\n  by: {a: 1}\n", 2, r"features\.by: must be a list, not a mapping$"),
    ("canvases: {home: {deadline: 200}}\n", 1, r"deadline: must be text, not 200; .*give a duration its unit"),
    ("features:\n  half_lives: [7d, 10x]\n", 2, r"half_lives\[1\]: '10x' is not a duration; write a number and one of ms, s, m, h, d, w"),
    ("heads:\n  buy: {}\n", 2, r"heads\.buy\.event: is missing$"),
    ("heads: {Buy: {event: purchase}}\n", 1, r"heads\.Buy: 'Buy' is not a name; allowed: a small letter"),
    ("heads:\n  a: {event: purchas}\n", 2, r"heads\.a\.event: 'purchas' is not among events: .*; did you mean 'purchase'\?$"),
    ("heads:\n  a: {event: rating, type: ordinl}\n", 2, r"heads\.a\.type: 'ordinl' is not allowed; did you mean 'ordinal'\?"),
    ("heads:\n  a: {event: rating, type: ordinal, levels: [1, 3, 2]}\n", 2, r"heads\.a\.levels: \[1\.0, 3\.0, 2\.0\] must be at least two grades that rise$"),
    ("heads:\n  a: {event: rating, type: ordinal, levels: [1, .inf]}\n", 2, r"heads\.a\.levels: .* must be at least two grades that rise$"),
    ("heads:\n  a: {event: rating, levels: [0, 1]}\n", 2, r"heads\.a\.levels: levels are of `type: ordinal` alone, and this head is binary$"),
    ("heads:\n  a: {event: watch, type: value, unit: 60}\n", 2, r"heads\.a\.unit: unit is of `type: weighted_logistic` alone, and this head is value$"),
    ("heads:\n  a: {event: watch, type: weighted_logistic, unit: .inf}\n", 2, r"heads\.a\.unit: inf must be finite$"),
    ("heads:\n  a: {event: watch}\n  b:\n    event: watch\n    type: lifetime_value\n    window: 56d\n", 6, r"heads\.b\.window: '56d' must be less than train\.ranking_span and train\.validation together \(42d and 14d\)"),
    ("heads:\n  b: {event: watch, type: lifetime_value}\n", 1, r"heads: one at least must be of another type than lifetime_value"),
    ("model:\n  ranking: {sharing: mmo}\n", 2, r"model\.ranking\.sharing: 'mmo' is not allowed; did you mean 'mmoe'\? allowed: none, shared_bottom, mmoe, ple$"),
    ("model:\n  ranking: {loss: listwis}\n", 2, r"model\.ranking\.loss: 'listwis' is not allowed; did you mean 'listwise'\?"),
    ("model:\n  ranking: {network: logistic, sharing: mmoe}\n", 2, r"model\.ranking\.sharing: 'mmoe' is of `network: deep` alone$"),
    ("model:\n  ranking: {network: logistic, interest: transformer}\n", 2, r"model\.ranking\.interest: 'transformer' is of `network: deep` alone$"),
    ("model:\n  ranking:\n    wide:\n      crosses: [[canvas, kind]]\n", 4, r"wide\.crosses: \['canvas', 'kind'\] says the same of every candidate: cross it with candidate or an attribute$"),
    ("model:\n  ranking:\n    wide:\n      crosses: [[user, candidate]]\n", 4, r"wide\.crosses: 'user' is not a field: canvas, kind, latest, latest\.ATTRIBUTE, candidate, candidate\.ATTRIBUTE$"),
    ("model:\n  ranking:\n    wide:\n      crosses: [[canvas.brand, candidate]]\n", 4, r"wide\.crosses: 'canvas\.brand' is not a field: "),
    ("model:\n  ranking:\n    wide:\n      crosses: [[candidate, candidate]]\n", 4, r"wide\.crosses: \['candidate', 'candidate'\] names a field twice$"),
    ("model:\n  ranking:\n    wide:\n      crosses: [[candidate], [candidate]]\n", 4, r"wide\.crosses: a cross is there twice$"),
    ("model:\n  ranking:\n    wide:\n      crosses: [[]]\n", 4, r"wide\.crosses: \[\] says the same of every candidate"),
    ("entities:\n  item: {attributes: {n: number, brand: category}}\nmodel:\n  ranking:\n    wide:\n      crosses:\n        - [canvas, candidate]\n        - [canvas, candidate.n]\n", 8, r"wide\.crosses\[1\]\[1\]: 'n' is not a category attribute of any entity type: brand$"),
    ("heads:\n  a: {event: rating, type: ordinal, each_next: 0.9}\n", 2, r"heads\.a\.each_next: each_next is of `type: binary` alone, and this head is ordinal$"),
    ("heads:\n  a: {event: click, each_next: 3}\n", 2, r"heads\.a\.each_next: must be less than or equal to 2, not 3$"),
    ("events:\n  play: {}\n", 1, r"'purchase' is not among events: play; heads are the default ones: with your own events, give your own heads too$"),
    ("canvases:\n  home:\n    entity_type: itm\n", 3, r"'itm' is not among entities: item; did you mean 'item'\?$"),
    ("canvases:\n  home:\n    order: {zz: 1}\n", 3, r"canvases\.home\.order\.zz: 'zz' is not among heads: purchase$"),
    ("features: {by: [brand]}\n", 1, r"features\.by\[0\]: 'brand' is not an attribute of any entity type$"),
    ("heads: {}\n", 1, r"heads: must have one entry at least; leave it out for the default ones$"),
    ("\ncanvases: {}\n", 2, r"canvases: must have one entry at least; leave it out for the default ones$"),
    ("canvases:\n  home:\n    deadline: 0s\n", 3, r"canvases\.home\.deadline: '0s' must be above 0 and at most 1m$"),
    ("canvases: {home: {deadline: 2h}}\n", 1, r"deadline: '2h' must be above 0 and at most 1m$"),
    ("train:\n  retrieval: {in_batch: false, uniform: 0}\n", 2, r"train\.retrieval: no negatives reach every entity: set in_batch, uniform or popular\.draws$"),
    ("train:\n  retrieval:\n    uniform: 0\n    hard: {draws: 2}\n", 2, r"train\.retrieval: hard negatives need uniform or popular\.draws beside them"),
    ("train:\n  retrieval:\n    hard: {draws: 9, among: 8}\n", 2, r"train\.retrieval: hard\.draws 9 must be at most hard\.among 8$"),
    ("storage:\n  log: kafka://b/t\n", 2, r"storage\.log: 'kafka://b/t' is no URL of a kind known here; allowed: sqlite://, memory://$"),
    ("storage:\n  state: redis://x\n", 2, r"storage\.state: .*; allowed: lmdb://, memory://$"),
    ("storage:\n  history: s3://x\n", 2, r"storage\.history: .*; allowed: file://$"),
    ("storage:\n  weights: ./weights\n", 2, r"storage\.weights: './weights' is .*; allowed: file://$"),
    ("entities:\n  item: {attributes: {brand: category, n: number}}\ncanvases:\n  home:\n    diversity:\n      brnd: 2\n", 6, r"canvases\.home\.diversity\.brnd: 'brnd' is not among the category attributes of entities\.item: brand; did you mean 'brand'\?$"),
    ("model:\n  history:\n    encoder: transformer\n    heads: 3\n", 4, r"model\.history\.heads: model\.dim is 64, for transformer it must be a multiple of 6$"),
    ("model:\n  dim: 4\n  history:\n    encoder: transformer\n    heads: 4\n", 5, r"must be a multiple of 8$"),
    ("model:\n  dim: 6\n  history:\n    encoder: hstu\n    heads: 4\n", 5, r"for hstu it must be a multiple of 4$"),
    ("entities:\n  item: {attributes: {n: number}}\ncanvases: {home: {diversity: {n: 2}}}\n", 3, r"diversity\.n: 'n' is not among the category attributes of entities\.item: none$"),
    ("serve:\n  port: 1\n  host: x\n  port: 2\n", 4, r"serve\.port: given twice, first in line 2$"),
    ("events:\n  on: {}\n", 2, r"events\.on: a key must be text; write it in quotes: 'on'$"),
    ("1: 2\n", 1, r"a key must be text"),
    ("? [a]\n: 1\n", 1, r"not YAML: .*unhashable key"),
    ("- a\n", 1, r"must be a mapping of keys to values; keys: version, "),
    ("word\n", 1, r"must be a mapping of keys to values"),
    ("a: 1\nb: [\n", 3, r"not YAML: "),
    ("a: 1\n\tb: 2\n", 2, r"not YAML: .*'\\t'"),
    ("name: x\nserve: !!python/object:os.system {}\n", 2, r"not YAML: could not determine a constructor"),
    ("a: 2017-99-99\n", 1, r"not YAML: month must be"),
    ("a: &b [*b]\n", 1, r"an anchor refers to itself$"),
    ("a: \x00\n", 1, r"not YAML: "),
    ("a: {}\n---\nb: {}\n", 2, r"not YAML: expected a single document"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "pattern"), ERRORS)
def test_an_error_names_line_key_and_what_is_allowed(text: str, line: int, pattern: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "shop.yaml")
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"shop.yaml:{line}: ")
    assert re.search(pattern, first), first


def test_every_problem_has_a_line_in_order() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("serve:\n  prt: 1\n  host: [x]\ntrain:\n  patience: 0\n")
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        "mainstem.yaml:2", "mainstem.yaml:3", "mainstem.yaml:5",
    ]  # fmt: skip


MISFITS = """\
heads:
  buy:
    event: purchas
  see:
    event: vew
canvases:
  home:
    order: {buy: 1, byu: 2}
  side:
    order: {zz: 1}
    entity_type: itm
features:
  by:
    - brand
"""


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return [":".join(line.split(":")[1:3]) for line in str(caught.value).splitlines()]


def test_what_does_not_fit_is_told_in_one_go() -> None:
    assert problems_of(MISFITS) == [
        "3: heads.buy.event", "5: heads.see.event", "8: canvases.home.order.byu", "10: canvases.side.order.zz",
        "11: canvases.side.entity_type", "14: features.by[0]",
    ]  # fmt: skip


def test_what_does_not_fit_is_told_beside_wrong_shapes_and_keys_given_twice() -> None:
    more = "  history: none\n  half_lives: [1d, 2x]\nserve:\n  prt: 1\n  host: a\n  host: b\n"
    assert problems_of(MISFITS + more) == [
        *problems_of(MISFITS), "15: features.history", "16: features.half_lives[1]", "18: serve.prt", "20: serve.host",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "events: {buy: {owned: maybe}, Sell: {}}\nheads: {buy: {event: Sell}}\n",  # a kind falls out
        "heads: {buy: {}}\ncanvases: {home: {order: {buy: 1}}}\n",
        "entities: {item: {attributes: {brand: catgory}}}\nfeatures: {by: [brand]}\n",
        "heds: {buy: {event: purchase}}\ncanvases: {home: {order: {buy: 1}}}\n",
    ],
)
def test_a_name_whose_entry_is_wrong_is_not_called_unknown(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert "is not a" not in str(caught.value).replace("is not a name", "").replace("is not allowed", "")


def test_what_does_not_fit_is_told_without_a_file_too() -> None:
    with pytest.raises(ValueError, match=r"heads\.a\.event: 'zz' is not among events(.|\n)*features\.by\.0: 'b'"):
        Config.model_validate({"heads": {"a": {"event": "zz"}}, "features": {"by": ["b"]}})


def test_errors_of_a_file_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text("nme: x\n")
    with pytest.raises(ConfigError, match=re.escape(f"{file}:1: nme: unknown key; did you mean 'name'?")):
        load(file)
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_the_template_is_the_defaults() -> None:
    text = template()
    assert parse(text) == Config()
    assert max(map(len, text.splitlines())) < 160


def test_the_template_uncommented_is_the_defaults_too() -> None:
    text = re.sub(r"(?m)^(\s*)#(?=\S)", r"\1", template())
    assert parse(text) == Config()
    assert "\n  port: 8080\n" in text, "canary: the settings were uncommented"
    assert parse(text.replace("port: 8080", "port: 8081")).serve.port == 8081


def all_models(model: type[BaseModel], found: dict[str, type[BaseModel]]) -> dict[str, type[BaseModel]]:
    for name, field in model.model_fields.items():
        kind = inner(field.annotation)
        for candidate in (kind, *getattr(kind, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel) and name not in found:
                found[name] = candidate
                all_models(candidate, found)
    return found


def test_template_schema_and_reference_name_every_key() -> None:
    text, reference, schema = template(), markdown(), json_schema()
    models = all_models(Config, {})
    assert {"storage", "events", "sources", "serve"} <= set(models)
    for name, model in models.items():
        assert f"`{name}" in reference or f".{name}." in reference
        assert model.__name__ in schema["$defs"]
        for key, field in model.model_fields.items():
            assert f"| `{key}` |" in reference
            assert name == "sources" or re.search(rf"(?m)(#\s*|^\s+){key}\b", text), key
            if field.description:
                assert field.description.split("|")[0].split("\n")[0] in reference


def test_the_schema_is_strict_json_schema() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert schema["$schema"].endswith("2020-12/schema")
    assert set(schema["properties"]) == set(Config.model_fields)


def test_links_of_the_reference_lead_somewhere() -> None:
    text = markdown()
    titles = re.findall(r"(?m)^## (.*)$", text)
    anchors = {"".join(c for c in title.lower() if c.isalnum() or c in "-_ ").replace(" ", "-") for title in titles}
    links = re.findall(r"\(#([^)]*)\)", text)
    assert links
    assert set(links) <= anchors
