"""The whole circle on a small world whose right answer is known: even users like even things, odd users odd ones."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mainstem import curriculum
from mainstem.loop import Loop
from mainstem.rank import Answer, Pipeline
from mainstem.schema.config import CanvasConfig, Config, EntityTypeConfig, FeatureConfig, ModelConfig, TrainConfig
from mainstem.schema.errors import StoreError
from mainstem.schema.ids import fresh_id, key64
from mainstem.schema.position import Position
from mainstem.schema.records import (
    Context,
    Entity,
    EntityDelete,
    EntityPatch,
    Erase,
    Event,
    LogRecord,
    Served,
    Show,
    Slate,
    SlateRequest,
)
from mainstem.schema.time import DAY, HOUR

START = 1_500_000_000_000
DAYS, USERS, THINGS = 30, 24, 120
NOW = START + (DAYS + 1) * DAY

CONFIG = Config(
    entities={"item": EntityTypeConfig(attributes={"parity": "category"})},
    features=FeatureConfig(by=["parity"]),
    canvases={"home": CanvasConfig(limit=10), "similar": CanvasConfig(limit=10)},
    model=ModelConfig(dim=16, hidden=[16]),
    train=TrainConfig(retrieval_batch=256, retrieval_epochs=3, ranking_slates=200, ranking_epochs=8, ranking_batch=4),
)


def thing(number: int, text: str = "") -> Entity:
    parity = "even" if number % 2 == 0 else "odd"
    return Entity(
        record_id=f"thing-{number}", time=START, entity=str(number), attributes={"parity": parity}, text=text or parity
    )


def purchase(user: int, number: int, at: int, name: str | None = None) -> Event:
    return Event(
        event_id=name or f"{user}-{number}-{at}", time=at, user=f"u{user}", kind="purchase", entity=str(number),
        session=f"{user}-{at // HOUR}",
    )  # fmt: skip


def checkerboard() -> list[LogRecord]:
    dice = random.Random(7)
    events = []
    for day in range(DAYS):
        for user in range(USERS):
            if dice.random() < 0.5:
                at = START + day * DAY + dice.randrange(20) * HOUR
                picks = dice.sample(range(THINGS // 2), 4)
                events += [purchase(user, 2 * pick + user % 2, at + place) for place, pick in enumerate(picks)]
    return [*(thing(number) for number in range(THINGS)), *sorted(events, key=lambda event: event.time)]


def ask(loop: Loop, user: str | None, **show: object) -> Slate:
    context = Context(user=user, time=NOW)
    request = SlateRequest(context=context, show=Show(**show), deadline_ms=10_000, after=str(loop.end()))  # type: ignore[arg-type]
    return loop.slate(request)


def own_parity(slate: Slate, user: int) -> float:
    return sum(int(item.entity) % 2 == user % 2 for item in slate.items) / max(len(slate.items), 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Loop, dict[str, Slate]]]:
    """The loop after one turn, and what it showed before it had learned."""
    with Loop(CONFIG, tmp_path_factory.mktemp("loop")) as loop:
        loop.append(checkerboard())
        before = {f"u{user}": ask(loop, f"u{user}", new_only=True) for user in range(4)}
        loop.train()
        yield loop, before


def test_what_was_learned_changes_what_is_shown(trained: tuple[Loop, dict[str, Slate]]) -> None:
    loop, before = trained
    after = {f"u{user}": ask(loop, f"u{user}", new_only=True) for user in range(4)}
    assert all(slate.dense_version is None and slate.degraded for slate in before.values())
    assert all(slate.dense_version and not slate.degraded for slate in after.values())
    assert sum(own_parity(after[f"u{user}"], user) for user in range(4)) / 4 >= 0.95
    assert [item.entity for item in before["u0"].items] != [item.entity for item in after["u0"].items]


def test_the_slate_says_what_it_did(trained: tuple[Loop, dict[str, Slate]]) -> None:
    loop, _ = trained
    slate = ask(loop, "u1")
    assert slate.position == str(loop.position)
    assert {"state", "retrieve", "filter", "score", "order", "total"} <= slate.timings_ms.keys()
    assert all(item.sources and "purchase" in item.scores for item in slate.items)
    assert len({item.entity for item in slate.items}) == len(slate.items) == 10


def test_an_event_changes_the_next_slate(trained: tuple[Loop, dict[str, Slate]]) -> None:
    loop, _ = trained
    first = ask(loop, "u2", new_only=True).items[0].entity
    loop.append([purchase(2, int(first), NOW - HOUR, "read-your-writes")])
    assert first not in [item.entity for item in ask(loop, "u2", new_only=True).items]
    assert ask(loop, "u2").position == str(loop.position)


def test_a_new_item_is_retrievable_and_a_sold_out_one_is_not(trained: tuple[Loop, dict[str, Slate]]) -> None:
    loop, _ = trained
    loop.append([thing(1002, text="brand new even thing"), thing(1001)])
    shown = ask(loop, "u0", only=["1002", "1001"])
    assert shown.items[0].entity == "1002", "its attributes speak for it before anybody bought it"
    loop.append([EntityPatch(record_id=fresh_id("p"), time=START + DAY, entity="1002", stock=0.0)])
    assert [item.entity for item in ask(loop, "u0", only=["1002", "1001"]).items] == ["1001"]
    loop.append([EntityDelete(record_id=fresh_id("d"), time=START + DAY, entity="1001")])
    assert ask(loop, "u0", only=["1002", "1001"]).items == []


def test_related_items_come_from_the_same_half(trained: tuple[Loop, dict[str, Slate]]) -> None:
    loop, _ = trained
    context = Context(canvas="similar", sources=["4"], time=NOW)
    slate = loop.slate(SlateRequest(context=context, deadline_ms=10_000))
    assert "4" not in [item.entity for item in slate.items]
    assert own_parity(slate, 0) >= 0.9


def test_strangers_guests_and_unknown_items_get_slates(trained: tuple[Loop, dict[str, Slate]]) -> None:
    loop, _ = trained
    assert len(ask(loop, None).items) == 10
    assert len(ask(loop, "never seen").items) == 10
    unknown = SlateRequest(context=Context(canvas="similar", sources=["no such thing"], time=NOW))
    assert len(loop.slate(unknown).items) == 10


def test_a_guest_becomes_a_user(trained: tuple[Loop, dict[str, Slate]]) -> None:
    loop, _ = trained
    bought = Event(event_id="g1", time=NOW - DAY, user="guest-9", kind="purchase", entity="7")
    alias = Event(event_id="g2", time=NOW - HOUR, user="new-user", kind="alias", entity="guest-9", entity_type="user")
    loop.append([bought, alias])
    assert "7" not in [item.entity for item in ask(loop, "new-user", new_only=True, only=["7", "9"]).items]


def test_slates_are_on_record(trained: tuple[Loop, dict[str, Slate]]) -> None:
    loop, _ = trained
    slate = ask(loop, "u3")
    served: list[Served] = []
    deadline = time.monotonic() + 30  # the recorder works behind the answers' back
    while not served and time.monotonic() < deadline:
        records = loop.parts.log.read(Position.at(max(loop.end().offset() - 200, 0)), 300).records
        served = [record for record in records if isinstance(record, Served) and record.record_id == slate.request_id]
        time.sleep(0.05)
    assert len(served) == 1
    assert len(served[0].features) == 4 * len(slate.items) * len(served[0].feature_names)


def test_an_empty_system_answers(tmp_path: Path) -> None:
    with Loop(CONFIG, tmp_path) as loop:
        slate = loop.slate(SlateRequest(context=Context(user="anybody")))
        assert slate.items == []
        assert {degraded.what for degraded in slate.degraded} >= {"model"}


@pytest.mark.parametrize("empty", [True, False])
def test_every_canvas_is_asked_before_anybody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    canvases = {
        "home": CanvasConfig(), "similar": CanvasConfig(learns_from="previous"),
        "aisle": CanvasConfig(learns_from="category"), "search": CanvasConfig(learns_from="query"),
    }  # fmt: skip
    things = EntityTypeConfig(attributes={"category": "category"})
    config = CONFIG.model_copy(
        update={"canvases": canvases, "entities": {"item": things}, "features": FeatureConfig(by=["category"])}
    )
    if not empty:
        with Loop(config, tmp_path) as loop:
            bread = msgspec.structs.replace(thing(3), attributes={"category": "bread"})
            loop.append([bread, purchase(1, 2, START), purchase(7, 3, START + HOUR)])
    asked: list[SlateRequest] = []
    answer = Pipeline.answer

    def noted(self: Pipeline, request: SlateRequest) -> Answer:
        asked.append(request)
        return answer(self, request)

    monkeypatch.setattr(Pipeline, "answer", noted)
    with Loop(config, tmp_path, follow=True) as loop:
        assert loop.end().offset() == (0 if empty else 3), "nothing of it is on record"
    assert [request.context.canvas for request in asked] == list(canvases)
    assert {request.deadline_ms for request in asked} == {60_000}
    contexts = {request.context.canvas: request.context for request in asked}
    assert contexts["home"].user == (None if empty else "u7")
    assert contexts["similar"].sources == ([] if empty else ["3"])
    assert contexts["aisle"].category == (None if empty else "bread")
    assert contexts["search"].query == ("anything" if empty else "3")


def test_a_server_starts_whoever_its_tenant_is_and_where_its_first_slates_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = CONFIG.model_copy(update={"tenant": "shop2"})
    with Loop(config, tmp_path, follow=True) as loop:
        assert loop.ready()[0]
    assert "first slates" not in caplog.text

    def fails(self: Pipeline, request: SlateRequest) -> Answer:
        raise StoreError("a page is damaged")

    monkeypatch.setattr(Pipeline, "answer", fails)
    with Loop(config, tmp_path, follow=True) as loop:
        assert loop.ready()[0]
    assert "the first slates failed" in caplog.text


def test_slates_that_were_shown_become_examples_and_shadow_slates_do_not(tmp_path: Path) -> None:
    with Loop(CONFIG, tmp_path) as loop:
        loop.append(checkerboard())
        loop.train()
        loop.catch_up()
        for shown, user in ((True, 0), (True, 1), (False, 2)):
            context = Context(user=f"u{user}", time=NOW)
            slate = loop.slate(SlateRequest(context=context, shown=shown, deadline_ms=10_000))
            answer = purchase(user, int(slate.items[3].entity), NOW + HOUR, f"answer-{user}")
            loop.append([msgspec.structs.replace(answer, request_id=slate.request_id)])
        deadline = time.monotonic() + 30
        while loop.end().offset() < len(checkerboard()) + 6 and time.monotonic() < deadline:
            time.sleep(0.05)  # three answers, and the three slates that the recorder writes behind their backs
        # The windows (a day) and the lateness pass in event time.
        loop.append([purchase(5, 7, NOW + 3 * DAY, "much later")])
        lessons = curriculum.Curriculum(CONFIG, loop.parts.log, lambda *stage: None).recorded
        assert len(lessons) == 2
        for examples in lessons:
            assert examples.labels[:, 0].tolist() == [float(place == 3) for place in range(10)]
            assert examples.inputs.shape[0] == 10


def test_an_erased_user_is_forgotten_and_not_learned_from(tmp_path: Path) -> None:
    with Loop(CONFIG, tmp_path) as loop:
        loop.append(checkerboard())
        known = curriculum.Curriculum(CONFIG, loop.parts.log, lambda *stage: None)
        loop.append([Erase(record_id="forget-u1", time=NOW, user="u1"), purchase(1, 3, NOW + 1, "u1 comes back")])
        after = curriculum.Curriculum(CONFIG, loop.parts.log, lambda *stage: None)
        key = np.uint64(key64("user", "u1"))
        assert (known.events.user == key).sum() > 10
        assert (after.events.user == key).sum() == 1
        loop.catch_up()
        with loop.parts.features.view(Context(user="u1", time=NOW + DAY)) as view:
            assert view.counts().keys.tolist() == [key64("item", "3")]


def test_a_restart_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with Loop(CONFIG, tmp_path) as loop:
        loop.append(checkerboard())
        loop.train()
        loop.catch_up()
        before = ask(loop, "u1", new_only=True)
        position, version = loop.position, before.dense_version
    with Loop(CONFIG, tmp_path) as loop:
        assert loop.position >= position, "nothing is read twice"
        after = ask(loop, "u1", new_only=True)
        assert after.dense_version == version
        assert [(item.entity, item.score) for item in after.items] == [
            (item.entity, pytest.approx(item.score, abs=1e-6)) for item in before.items
        ]
        assert loop.append(checkerboard()[:300]).accepted == 0, "the log knows what it has"


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_loop import CONFIG, checkerboard
from mainstem.loop import Loop
with Loop(CONFIG, Path(sys.argv[1]), follow=True) as loop:
    records = checkerboard()
    for start in range(0, len(records), 20):
        print(loop.append(records[start : start + 20]).position, flush=True)
"""


@pytest.mark.slow
def test_kill_9_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    """Appending and following is killed at several moments; the state must equal one that never was."""
    dice, records = random.Random(3), checkerboard()
    acknowledged = 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(Path(__file__).parent)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        for _ in range(dice.randrange(5, 30)):
            line = child.stdout.readline().decode().strip()
            if not line:
                break
            acknowledged = max(acknowledged, Position.parse(line).offset())
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    with Loop(CONFIG, tmp_path / "killed") as killed, Loop(CONFIG, tmp_path / "whole") as whole:
        assert killed.end().offset() >= acknowledged
        killed.append(records)
        whole.append(records)
        assert killed.end() == whole.end()
        for user in ("u0", "u5", "stranger"):
            one, other = ask(killed, user), ask(whole, user)
            assert [(item.entity, round(item.score, 6)) for item in one.items] == [
                (item.entity, round(item.score, 6)) for item in other.items
            ]
