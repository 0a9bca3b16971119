"""The demo's run, step by step. Each step can be killed and the next run goes on where it stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from mainstem import datasets
from mainstem.assemble import open_log
from mainstem.demo.baskets import Baskets, Split
from mainstem.demo.client import FROZEN, HttpClient
from mainstem.demo.server import OnlineProcess, ServerProcess, TrainingProcess, check_port
from mainstem.evaluate import Replay, ReplayDisplay, Results, default_baselines, final_table, load_state, save_state
from mainstem.evaluate import write_report as write_html
from mainstem.evaluate.replay import SIDES
from mainstem.progress import Show, stages
from mainstem.schema.config import Config
from mainstem.schema.config_file import load, storage_urls
from mainstem.schema.errors import StoreError
from mainstem.schema.records import LogRecord
from mainstem.schema.time import SECOND, iso
from mainstem.weights import SnapshotMeta, Snapshots
from mainstem.weights import open as open_weights

__all__ = ["Demo"]

BATCH = 20_000
# Every so many baskets the model as it was before the replay is asked too.
COMPARED = 4
# Share of slates whose candidates go on record for the ranking network: a replay has few slates, so many of them.
POOLS = 0.2
# Baskets between looks at whether the trainer still runs.
CHECK_EVERY = 50
PROTOCOL = (
    "Before each basket two slates of ten are asked for its user as of its time: one of anything, scored on all of "
    "the basket, and one of what the user never had, scored on what is new to them. Then the basket is posted. The "
    "baselines answer the same requests under the same restriction. Nothing was chosen on these weeks. A trainer "
    "beside the server learns from the baskets as they come; the model as it was before them is asked on some of "
    "them too."
)


class Demo:
    """`dataset` into `folder`, which holds everything and can be deleted. Resumes unless `fresh`."""

    def __init__(
        self, dataset: str, folder: Path, *, quick: bool = False, port: int = 8080, fresh: bool = False
    ) -> None:
        self.dataset, self.folder, self.port = datasets.get(dataset), folder, port
        self.baskets = Baskets(self.dataset, quick)
        self.quick, self.fresh = quick, fresh
        self.console = Console(stderr=True)

    def run(self, *, stay: bool) -> dict[str, Any]:
        """The whole story; the summary of `Results`. `stay`: leave the server running until Ctrl-C."""
        began = time.monotonic()
        check_port(self.port)
        if self.fresh:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self._configure()
        self.console.rule(f"[bold]Mainstem demo: {self.dataset.title}")
        with stages(self.console) as show:
            split = self._split(show)
            self._ingest(config, split, show)
        with ServerProcess(self.config_file, self.folder / "server.log", self.port) as server:
            # Three processes now: the server brings its state up to date, one trains, this one teaches the baselines.
            store = open_weights(storage_urls(config, self.folder).weights)
            version = store.latest(FROZEN).version
            training = TrainingProcess(self.config_file) if store.latest("main").version is None else None
            replay, client = self._teach(server, split, config)
            if training:
                training.result()
            if version is None:
                freeze(store)
            server.wait_ready("main", FROZEN)
            with OnlineProcess(self.config_file, self.folder / "trainer.log") as trainer:
                self.console.print(
                    f"serving at [link={server.url}/docs]{server.url}[/link], learning from what comes in",
                    highlight=False,
                )
                before = store.place("main")
                results = self._replay(replay, client, split, trainer)
                sides = replay.compared.summary()
                compared = {SIDES[0]: sides[SIDES[0]], SIDES[1]: sides["baselines"][SIDES[1]]}
                summary = {**results.summary(), "compared": compared, "seconds": round(time.monotonic() - began, 1)}
                self._tell(replay, results, split, learned=store.place("main") != before)
                if stay:
                    self._leave_running(server, split)
        return summary

    # ---- steps -----------------------------------------------------------------------------------

    @property
    def config_file(self) -> Path:
        return self.folder / "mainstem.yaml"

    def _configure(self) -> Config:
        settings = {**self.dataset.config, "data": "data", "serve": {"lines": [FROZEN], "pool_sample": POOLS}}
        if self.quick:
            settings["train"] = {**dict(settings.get("train", {})), "ranking_slates": 1_000}  # type: ignore[call-overload]
        text = yaml.safe_dump(settings, sort_keys=False)
        if self.config_file.exists() and self.config_file.read_text() != text:
            self.console.print("the demo's configuration has changed since its last run: starting over")
            shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
        self.config_file.write_text(text)
        return load(self.config_file)

    def _split(self, show: Show) -> Split:
        show("reading the data set", 0, 1)
        split = self.baskets.split()
        show("reading the data set", 1, 1)
        return split

    def _ingest(self, config: Config, split: Split, show: Show) -> None:
        """Catalogue and past into the log. What a killed run had put in is passed over: the order is fixed."""
        log = open_log(config, self.folder)
        try:
            past = (event for event in self.baskets.events() if event.time < split.cut)
            records: Iterator[LogRecord] = chain(self.baskets.entities(), past)
            total = self.dataset.counts.entities + split.past
            here = log.end().offset()
            done = min(here, total) // BATCH * BATCH  # whole batches; the log drops what it knows of the next
            records = islice(records, done, None)
            while batch := list(islice(records, BATCH)):
                _retry(lambda batch=batch: log.append(batch))  # type: ignore[misc]
                done += len(batch)
                show("events into the log", done, total)
            show("events into the log", total, total)
        finally:
            log.close()

    def _teach(self, server: ServerProcess, split: Split, config: Config) -> tuple[Replay, HttpClient]:
        """The replay, its baselines taught all that came before."""
        client = HttpClient(server.host, server.port, next(iter(config.canvases)))
        replay = Replay(client, default_baselines(), rival=client.frozen, rival_every=COMPARED)
        replay.teach(self.baskets.past(split.cut))
        return replay, client

    def _replay(self, replay: Replay, client: HttpClient, split: Split, trainer: OnlineProcess) -> Results:
        live = self.baskets.live(split.cut)
        saved = self.folder / "replay.json"
        if (state := load_state(saved)) is not None:
            replay.load(state)
            self.console.print(f"going on after basket {replay.results.baskets:,}")
        title = f"Replay from {iso(split.cut)[:10]} on"
        with ReplayDisplay(len(live), title=title) as display:
            for results in replay.run(live, lambda state: save_state(saved, state)):
                display.update(results)
                if results.baskets % CHECK_EVERY == 0:
                    trainer.check()
        client.close()
        for what, (times, why) in sorted(client.degraded.items(), key=lambda item: -item[1][0])[:5]:
            self.console.print(f"[yellow]{times:,} slates fell short of {what}; the last: {why}", highlight=False)
        return replay.results

    def _tell(self, replay: Replay, results: Results, split: Split, *, learned: bool) -> None:
        report = write_html(
            self.folder / "report.html",
            results,
            title=f"Mainstem on {self.dataset.title}",
            protocol=PROTOCOL,
            config=self.config_file.read_text(),
            facts={"data set": self.dataset.name, "live from": iso(split.cut), "past events": f"{split.past:,}"},
            compared=replay.compared,
        )
        self.console.print(final_table(results))
        each = "every basket" if COMPARED == 1 else f"every {COMPARED}th basket"
        self.console.print(final_table(replay.compared, f"The same model, learning and frozen ({each})"))
        if not learned:
            self.console.print(
                f"[yellow]while the replay ran, the trainer published nothing, so the two are one model: had it too "
                f"little of the processor? What it says is in {self.folder / 'trainer.log'}",
                highlight=False,
            )
        self.console.print(f"report with plots: {report.resolve()}", highlight=False)

    def _leave_running(self, server: ServerProcess, split: Split) -> None:
        live = self.baskets.live(split.cut)
        basket, now = live[0], iso(live[-1].time + SECOND)
        self.console.print(
            f"\nThe server goes on at {server.url} until Ctrl-C. API docs: {server.url}/docs\n"
            f"For it, it is {now}, just after the last basket. Try:\n"
        )
        event = f'{{"user": "{basket.user}", "kind": "{basket.events[0].kind}", "entity": "{basket.items[0]}", '
        lines = (
            f"curl '{server.url}/v1/users/{basket.user}/slate?canvas=home&limit=5&time={now}'",
            f"curl '{server.url}/v1/items/{basket.items[0]}/similar?limit=5&time={now}'",
            f'curl -X POST {server.url}/v1/events -d \'{event}"time": "{now}"}}\'',
        )
        for line in lines:
            self.console.print("  " + line, soft_wrap=True, highlight=False)
        try:
            server.wait()
        except KeyboardInterrupt:
            self.console.print("stopping")


def freeze(store: Snapshots) -> None:
    """A copy of the newest model, which nothing goes on to change, as the line FROZEN."""
    version = store.latest("main").version
    assert version is not None
    snapshot = store.load("main", version)
    manifest = snapshot.manifest
    extras = {name: value for name, value in manifest.extras.items() if name != "state"}
    meta = SnapshotMeta(fingerprint=manifest.fingerprint, position=snapshot.position, extras=extras)
    store.save(FROZEN, snapshot.tensors, snapshot.tables, meta)


def _retry(act: Callable[[], object], patience: float = 15.0) -> None:
    """A killed run's server may need a moment to see its parent gone and let go of the log."""
    deadline = time.monotonic() + patience
    while True:
        try:
            act()
        except StoreError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return
