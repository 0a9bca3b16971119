"""Two model lines in one server: each is waited for, and told of, by itself."""

from __future__ import annotations

from pathlib import Path

import httpx
import yaml
from test_loop import CONFIG, NOW, checkerboard

from mainstem.demo.client import FROZEN
from mainstem.demo.server import ServerProcess
from mainstem.demo.story import freeze
from mainstem.loop import NO_MODEL, Loop
from mainstem.schema.config_file import load


def test_a_line_is_waited_for_until_its_model_is_in_use(tmp_path: Path) -> None:
    file = tmp_path / "mainstem.yaml"
    settings = CONFIG.model_dump(mode="json", exclude_defaults=True) | {"data": "data", "serve": {"lines": [FROZEN]}}
    file.write_text(yaml.safe_dump(settings))
    with Loop(load(file), tmp_path) as loop:
        loop.append(checkerboard())
        trained = loop.train().version
        store = loop.parts.snapshots
    asked = {"context": {"canvas": "home", "user": "u1", "time": NOW}, "model_line": FROZEN, "shown": False}
    with ServerProcess(file, tmp_path / "server.log", 0) as server:
        said = server.wait_ready("main")["parts"]
        assert said["model"] == trained
        assert said["lines"] == {FROZEN: {"model": NO_MODEL, "delta": 0}}
        [short] = httpx.post(f"{server.url}/v1/slates", json=asked).json()["degraded"]
        assert "no trained model yet" in short["why"]

        freeze(store)
        said = server.wait_ready("main", FROZEN)["parts"]
        assert said["lines"] == {FROZEN: {"model": store.latest(FROZEN).version, "delta": 0}}
        slate = httpx.post(f"{server.url}/v1/slates", json=asked).json()
        assert slate["items"]
        assert slate["degraded"] == []
