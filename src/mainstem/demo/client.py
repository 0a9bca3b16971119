"""The replay's client: speaks the public HTTP API and nothing else, over one kept-alive connection."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from typing import Any

from mainstem.schema.errors import MainstemError
from mainstem.schema.records import Event

__all__ = ["FROZEN", "HttpClient"]

# Every so many posts, measure how long until a slate reflects them.
PROBE_EVERY = 20


# The model line that holds the model as it was before the replay.
FROZEN = "frozen"


class HttpClient:
    """`ReplayClient` over HTTP. Slates are asked as of the basket's time, with `shown: false` (they are never
    negatives) and `after` the latest acknowledged position, so each reflects all that was posted before."""

    def __init__(self, host: str, port: int, canvas: str, k: int = 10) -> None:
        self.host, self.port, self.canvas, self.k = host, port, canvas, k
        self._connection = http.client.HTTPConnection(host, port, timeout=60)
        self._after: str | None = None
        self._posts = 0
        self._lags: list[float] = []
        self.degraded: dict[str, tuple[int, str]] = {}  # stage and what of it -> how many slates, and why the last

    def slate(self, user: str, time: int, new_only: bool) -> list[str]:
        return self._slate(user, time, new_only, self.k)

    def frozen(self, user: str, time: int, new_only: bool) -> list[str]:
        """The same question to the model as it was before the replay."""
        return self._slate(user, time, new_only, self.k, FROZEN)

    def post(self, events: Sequence[Event]) -> None:
        began = time.perf_counter()
        self._after = self.call("POST", "/v1/events", [_wire(event) for event in events])["position"]
        self._posts += 1
        if self._posts % PROBE_EVERY == 0:
            # One more moment than the events', so that they count for it (law 4).
            self._slate(events[0].user, events[-1].time + 1, False, 1)
            self._lags.append((time.perf_counter() - began) * 1e3)

    def lags_ms(self) -> list[float]:
        lags, self._lags = self._lags, []
        return lags

    def _slate(self, user: str, time: int, new_only: bool, limit: int, line: str = "main") -> list[str]:
        asked: dict[str, Any] = {
            "context": {"canvas": self.canvas, "user": user, "time": time},
            "show": {"new_only": new_only},
            "limit": limit,
            "deadline_ms": 5_000,
            "shown": False,
            "model_line": line,
        }
        if self._after:
            asked["after"] = self._after
        slate = self.call("POST", "/v1/slates", asked)
        for degraded in slate["degraded"]:
            name = f"{degraded['stage']}: {degraded['what']}"
            times, _ = self.degraded.get(name, (0, ""))
            self.degraded[name] = times + 1, degraded["why"]
        return [item["entity"] for item in slate["items"]]

    def call(self, method: str, path: str, body: object = None) -> Any:
        """One request; its decoded answer. Raises MainstemError for anything but success."""
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body))
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise MainstemError(f"the server at {self.host}:{self.port} went away ({error})") from error
        if response.status >= 300:
            raise MainstemError(f"{method} {path} answered {response.status}: {answer[:500].decode(errors='replace')}")
        return json.loads(answer)

    def close(self) -> None:
        self._connection.close()


def _wire(event: Event) -> dict[str, Any]:
    """An event as a client would write it."""
    known = {
        "event_id": event.event_id,
        "time": event.time,
        "user": event.user,
        "kind": event.kind,
        "entity": event.entity,
        "value": event.value,
        "session": event.session,
        "extras": event.extras,
    }
    return {name: value for name, value in known.items() if value is not None}
