"""The replay engine: order of things, worlds with a known answer, and the law that a kill changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.evaluate import Basket, PopularLately, Replay, UserCounts, load_state, save_state
from mainstem.schema.errors import ConfigError
from mainstem.schema.records import Event
from mainstem.schema.time import DAY


class Killed(Exception):
    pass


class Server:
    """A durable system that remembers what each user took and answers the most taken; ids make posts idempotent.

    `budget` calls from now it dies, before or after (`after`) doing what was asked.
    """

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.counts: dict[str, dict[str, int]] = {}
        self.calls: list[str] = []
        self.budget: int | None = None
        self.after = False

    def _spend(self) -> bool:
        if self.budget is None:
            return False
        self.budget -= 1
        if self.budget < 0 and not self.after:
            raise Killed
        return self.budget < 0

    def slate(self, user: str, time: int, new_only: bool) -> list[str]:
        dies = self._spend()
        self.calls.append("new" if new_only else "all")
        mine = self.counts.get(user, {})
        every = sorted({item for items in self.counts.values() for item in items})
        if dies:
            raise Killed
        return [item for item in every if item not in mine] if new_only else sorted(mine, key=lambda i: (-mine[i], i))

    def post(self, events: Sequence[Event]) -> None:
        dies = self._spend()
        self.calls.append("post")
        for event in events:
            if event.event_id not in self.ids:
                self.ids.add(event.event_id)
                mine = self.counts.setdefault(event.user, {})
                assert event.entity is not None
                mine[event.entity] = mine.get(event.entity, 0) + 1
        if dies:
            raise Killed

    def lags_ms(self) -> list[float]:
        return [7.0]


def basket(number: int, user: str, items: Sequence[str]) -> Basket:
    time = number * DAY // 2
    events = [
        Event(event_id=f"{number}-{i}", time=time, user=user, kind="purchase", entity=x) for i, x in enumerate(items)
    ]
    return Basket(user, time, items, f"s{number}", events)


def replay_of(server: Server) -> Replay:
    return Replay(server, [PopularLately(), UserCounts()], clock=lambda: 0.0)


def test_a_user_who_always_buys_the_same_three_things() -> None:
    server = Server()
    replay = replay_of(server)
    stream = [basket(n, "ann", ["tea", "milk", "rye"]) for n in range(10)]
    yielded = [results.baskets for results in replay.run(stream)]
    assert yielded == list(range(1, 11))
    # the first basket is a surprise, the other nine are known: 0.9 for whoever remembers
    for name in replay.results.systems:
        assert replay.results.score(name, "all").ndcg == pytest.approx(0.9)
        assert replay.results.score(name, "all").recall == pytest.approx(0.9)
    # nothing is new after the first: the restricted slate is asked all the same, and scored once
    assert replay.results.score("mainstem", "new").n == 1
    assert server.calls == ["all", "new", "post"] * 10
    assert replay.results.slates == 20
    assert replay.results.events == 30


def test_each_basket_is_scored_before_it_is_learned() -> None:
    """Canary: an engine that learned first would know every basket and score 1."""
    server = Server()
    replay = replay_of(server)
    for _ in replay.run([basket(n, "ann", [f"thing{n}"]) for n in range(6)]):
        pass
    assert [replay.results.score(name, "all").ndcg for name in replay.results.systems] == [0.0, 0.0, 0.0]


def test_the_restricted_slate_is_scored_on_the_new_items_alone() -> None:
    server = Server()
    replay = replay_of(server)
    replay.teach([basket(0, "ann", ["a"]), basket(1, "bob", ["b"])])
    server.post([*basket(0, "ann", ["a"]).events, *basket(1, "bob", ["b"]).events])
    for _ in replay.run([basket(2, "ann", ["a", "b", "b"])]):
        pass
    for name in replay.results.systems:
        assert replay.results.score(name, "new").ndcg == 1.0
        assert replay.results.score(name, "new").recall == 1.0
    assert replay.results.score("mainstem", "all").recall == 0.5


def test_an_empty_basket_is_posted_and_not_scored() -> None:
    server = Server()
    replay = replay_of(server)
    for _ in replay.run([basket(0, "ann", [])]):
        pass
    assert (replay.results.baskets, replay.results.slates, server.calls) == (1, 0, [])


streams = st.lists(
    st.tuples(st.sampled_from(["ann", "bob"]), st.lists(st.sampled_from("abcdefgh"), max_size=5)),
    min_size=1,
    max_size=12,
)


def whole(stream: list[Basket]) -> dict[str, object]:
    replay = replay_of(Server())
    for _ in replay.run(stream):
        pass
    return replay.state()


def quality(state: dict[str, object]) -> dict[str, object]:
    return {key: state[key] for key in ("baskets", "slates", "events", "days", "time")}


@settings(deadline=None, max_examples=150)
@given(streams, st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=4))
def test_killed_anywhere_and_resumed_equals_uninterrupted(
    rows: list[tuple[str, list[str]]], kills: list[tuple[int, bool]]
) -> None:
    stream = [basket(n, user, items) for n, (user, items) in enumerate(rows)]
    server, kept = Server(), list[str]()
    for budget, after in [*kills, (10**9, False)]:
        replay = replay_of(server)
        if kept:
            replay.load(json.loads(kept[-1]))
        server.budget, server.after = budget, after
        try:
            for _ in replay.run(stream, lambda state: kept.append(json.dumps(state))):
                pass
        except Killed:
            pass
    assert quality(json.loads(kept[-1])) == quality(json.loads(json.dumps(whole(stream))))
    assert server.ids == {event.event_id for b in stream for event in b.events}


def test_checkpointing_after_the_post_would_be_caught() -> None:
    """Canary for the law above: a basket that was posted but not on record scores itself as known."""
    stream = [basket(0, "ann", ["a", "b"])]
    server = Server()
    server.post(stream[0].events)  # what a kill between post and checkpoint leaves behind
    replay = replay_of(server)
    for _ in replay.run(stream):
        pass
    assert quality(replay.state()) != quality(whole(stream))


def test_states_of_other_comparisons_are_refused(tmp_path: Path) -> None:
    replay = replay_of(Server())
    path = tmp_path / "replay.json"
    assert load_state(path) is None
    save_state(path, replay.state())
    state = load_state(path)
    assert state == replay.state()
    with pytest.raises(ConfigError, match="start it anew"):
        Replay(Server(), [PopularLately()]).load(state)
    path.write_text('{"half')
    with pytest.raises(ConfigError, match="not a saved replay"):
        load_state(path)
    with pytest.raises(ConfigError, match="distinct"):
        Replay(Server(), [PopularLately(), PopularLately()])


def test_the_summary_has_exactly_its_form() -> None:
    replay = replay_of(Server())
    for _ in replay.run([basket(n, "ann", ["a"]) for n in range(3)]):
        pass
    summary = replay.results.summary()
    both = {"all": {"ndcg@10", "recall@10"}, "new": {"ndcg@10", "recall@10"}}
    assert list(summary) == ["mainstem", "baselines", "slates", "latency_ms", "events_per_s", "freshness_ms", "seconds"]
    assert set(summary["baselines"]) == {"popular lately", "user counts"}
    for system in (summary["mainstem"], *summary["baselines"].values()):
        assert {name: set(values) for name, values in system.items()} == both
    assert set(summary["latency_ms"]) == set(summary["freshness_ms"]) == {"p50", "p99"}
    assert summary["freshness_ms"]["p50"] == pytest.approx(7, rel=0.011)
    json.dumps(summary, allow_nan=False)


def test_an_unstarted_replay_has_a_summary_too() -> None:
    summary = replay_of(Server()).results.summary()
    assert summary["mainstem"]["all"] == {"ndcg@10": None, "recall@10": None}
    json.dumps(summary, allow_nan=False)
