"""Parts of a request and of an entity, from the log to the slate: country, text, category, other types of entities.

In every world here the user says nothing: in each visit somebody else takes things of one of two kinds, and only the
part in question tells which.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mainstem.loop import Loop
from mainstem.schema.config import CanvasConfig, Config, EntityTypeConfig, ModelConfig, SourceConfig, TrainConfig
from mainstem.schema.records import Context, Entity, Event, LogRecord, Served, Show, Slate, SlateRequest
from mainstem.schema.text_config import TextConfig
from mainstem.schema.time import DAY, HOUR

START = 1_500_000_000_000
DAYS, VISITS, THINGS = 20, 24, 40
NOW = START + (DAYS + 1) * DAY
KINDS = ("even", "odd")
NEAREST = {"two_tower": SourceConfig(limit=10)}

Visit = Callable[[int, int], dict[str, Any]]
"""Number and parity of a visit -> what its events say besides."""


def config_of(**changes: Any) -> Config:
    canvases = {"home": CanvasConfig(limit=10, sources=NEAREST)}
    train = TrainConfig(
        retrieval_batch=64, retrieval_epochs=4, ranking_slates=60, ranking_epochs=1, ranking_batch=8,
        validation="2d",
    )  # fmt: skip
    return Config(**{"canvases": canvases, "model": ModelConfig(dim=16, hidden=[16]), "train": train, **changes})


def world(said: Visit, kind: str = "item", before: Visit | None = None) -> list[LogRecord]:
    """Each visit takes three things of its parity; `before`: the context of a slate that its events answer."""
    dice, records = random.Random(7), list[LogRecord]()
    for number in range(DAYS * VISITS):
        parity, at = dice.randrange(2), START + number * DAY // VISITS
        extra = said(number, parity)
        if before is not None:
            context = Context(time=at - 1_000, **before(number, parity))
            slate = Slate(request_id=f"slate-{number}", canvas="home", time=at - 1_000, items=[])
            records.append(
                Served(
                    record_id=f"slate-{number}", time=at - 1_000, user=None, request=SlateRequest(context=context),
                    slate=slate, shown=False,
                )
            )  # fmt: skip
            extra |= {"request_id": f"slate-{number}"}
        records += [
            Event(
                event_id=f"{number}-{place}", time=at + place, user=f"u{number % 11}", kind="purchase",
                session=str(number), entity=str(2 * item + parity), entity_type=kind, **extra,
            )
            for place, item in enumerate(dice.sample(range(THINGS // 2), 3))
        ]  # fmt: skip
    return records


def things(kind: str = "item", numbers: range = range(THINGS), **fields: Callable[[int], Any]) -> list[LogRecord]:
    return [
        Entity(
            record_id=f"{kind}-{i}", time=START, entity=str(i), entity_type=kind,
            **{name: of(i) for name, of in fields.items()},
        )
        for i in numbers
    ]  # fmt: skip


def learned(config: Config, folder: Path, records: list[LogRecord]) -> Loop:
    loop = Loop(config, folder)
    loop.append(records)
    loop.catch_up()
    loop.train()
    return loop


def ask(loop: Loop, show: Show | None = None, **context: Any) -> Slate:
    loop.catch_up()
    asked = Context(time=NOW, **context)
    request = SlateRequest(context=asked, show=show or Show(), deadline_ms=20_000, limit=10, shown=False, explain=True)
    return loop.slate(request)


def share(slate: Slate, parity: int) -> float:
    """Of a slate's things, the share of this parity."""
    assert slate.items
    return sum(int(item.entity) % 2 == parity for item in slate.items) / len(slate.items)


def right(loop: Loop, asked: Callable[[int], dict[str, Any]]) -> float:
    return sum(share(ask(loop, **asked(parity)), parity) for parity in (0, 1)) / 2


# ---- country, language, device -----------------------------------------------------------------------


def by_extras(number: int, parity: int) -> dict[str, Any]:
    return {"extras": {"country": KINDS[parity], "device": "phone"}}


def by_nothing(number: int, parity: int) -> dict[str, Any]:
    return {}


def by_slate(number: int, parity: int) -> dict[str, Any]:
    return {"country": KINDS[parity]}


@pytest.mark.parametrize(
    ("said", "before", "learns"),
    [(by_extras, None, True), (by_nothing, by_slate, True), (by_nothing, None, False)],
    ids=["extras", "slates", "canary"],
)
def test_what_depends_on_the_country_is_learned(
    tmp_path: Path, said: Visit, before: Visit | None, learns: bool
) -> None:
    with learned(config_of(), tmp_path, [*things(), *world(said, before=before)]) as loop:
        found = right(loop, lambda parity: {"country": KINDS[parity]})
        assert found > 0.9 if learns else found < 0.8
        if learns:
            assert right(loop, lambda parity: {"country": KINDS[parity], "device": "phone", "user": "u1"}) > 0.9
            assert right(loop, lambda parity: {"user": "u1"}) < 0.8  # without it nobody knows, and there is an answer
            assert ask(loop, country="nowhere").items


# ---- texts -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """Every thing's text and every search says of which kind it is, and the model reads no words, but texts whole."""
    canvases = {
        "home": CanvasConfig(limit=10, sources=NEAREST),
        "search": CanvasConfig(limit=10, sources=NEAREST, learns_from="query", share=1.0),
    }
    model = ModelConfig(dim=16, hidden=[16], words=0, text=TextConfig(encoder="hashing"))
    config, folder = config_of(canvases=canvases, model=model), tmp_path_factory.mktemp("spoken")
    records = world(lambda number, parity: {"query": f"{KINDS[parity]} {1_000 + number}"})
    with learned(config, folder, [*things(text=lambda i: f"{KINDS[i % 2]} {i}"), *records]) as loop:
        yield loop


def test_a_search_that_was_never_made_finds_its_kind(spoken: Loop) -> None:
    assert right(spoken, lambda parity: {"canvas": "search", "query": f"{KINDS[parity]} 99999"}) > 0.9
    (kept,) = (spoken.base / spoken.config.data / "text").iterdir()
    assert kept.stat().st_size > THINGS * 2 * 256


def test_a_new_thing_is_found_from_its_first_second(spoken: Loop) -> None:
    spoken.append(things(numbers=range(THINGS, THINGS + 20), text=lambda i: f"{KINDS[i % 2]} {i}"))
    show = Show(only=[str(i) for i in range(THINGS, THINGS + 20)])
    for parity in (0, 1):
        slate = ask(spoken, show, canvas="search", query=f"{KINDS[parity]} 77777")
        nearest = [item for item in slate.items if "two_tower" in item.sources]
        assert len(nearest) == 10
        assert share(msgspec.structs.replace(slate, items=nearest), parity) > 0.9


def test_a_text_that_changed_is_what_counts(spoken: Loop) -> None:
    name = str(THINGS + 50)

    def leaning() -> float:
        """How much nearer it is to searches for even things than to those for odd ones."""
        near = []
        for kind in KINDS:
            slate = ask(spoken, Show(only=[name]), canvas="search", query=f"{kind} 77777")
            assert slate.items[0].features is not None
            near.append(slate.items[0].features["two_tower"])
        return near[0] - near[1]

    spoken.append([Entity(record_id="new", time=START, entity=name, text="even 5050")])
    assert leaning() > 0.1
    spoken.append([Entity(record_id="newer", time=START + 1, entity=name, text="odd 5050")])
    assert leaning() < -0.1


# ---- other types of entities ---------------------------------------------------------------------------


def test_a_canvas_of_another_type_of_entity_is_asked_and_learned_as_any(tmp_path: Path) -> None:
    """Genres and people, taken as things are: a canvas shows those of its own type alone."""
    canvases = {
        "home": CanvasConfig(limit=10),
        "genres": CanvasConfig(limit=10, entity_type="genre", sources=NEAREST),
        "people": CanvasConfig(limit=10, entity_type="user"),
    }
    entities = {name: EntityTypeConfig() for name in ("item", "genre", "user")}
    records = world(by_extras, kind="genre")
    follows = [
        Event(
            event_id=f"f{i}", time=START + i * HOUR, user=f"u{i % 11}", kind="like", entity=f"u{(i + 1) % 11}",
            entity_type="user",
        )
        for i in range(100)
    ]  # fmt: skip
    people = [Entity(record_id=f"p{i}", time=START, entity=f"u{i}", entity_type="user") for i in range(11)]
    described = [*things(), *things("genre"), *people]
    config = config_of(canvases=canvases, entities=entities)
    config = config.model_copy(update={"train": config.train.model_copy(update={"ranking_slates": 240})})
    with learned(config, tmp_path, [*described, *sorted([*records, *follows], key=lambda one: one.time)]) as loop:
        assert right(loop, lambda parity: {"canvas": "genres", "country": KINDS[parity]}) > 0.9
        for canvas, kind in (("home", "item"), ("genres", "genre"), ("people", "user")):
            slate = ask(loop, canvas=canvas, user="u1", country="even")
            assert {item.entity_type for item in slate.items} == {kind}
            assert not [one for one in slate.degraded if one.stage == "score"]
        beside = ask(loop, canvas="genres", sources=["u2"], source_type="user")
        assert len(beside.items) == 10
