"""The load generator: a process of its own that posts ready bodies over kept-alive connections.

    python benchmarks/_load.py HOST PORT PATH CLIENTS < BODIES

BODIES are one JSON body a line. CLIENTS connections post them, each the next one as soon as its last is answered
(a closed loop). It speaks the least of HTTP/1.1 that a server with `content-length` needs, over asyncio protocols,
so that it takes little of the machine it shares with the server. One JSON line on stdout says what happened.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, cast

try:
    from uvloop import run
except ImportError:
    from asyncio import run

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ACCEPTED = re.compile(rb'"accepted": *(\d+)')


def post(host: str, port: int, path: str, clients: int, bodies: Path) -> Popen[bytes]:
    """Start the generator in a process of its own; `result` reads what it says at its end."""
    command = [sys.executable, str(Path(__file__).resolve()), host, str(port), path, str(clients)]
    with bodies.open("rb") as given:
        return Popen(command, stdin=given, stdout=PIPE)


def result(process: Popen[bytes]) -> dict[str, Any]:
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the load generator ended with status {process.returncode}")
    answer: dict[str, Any] = json.loads(said)
    return answer


@dataclass(slots=True)
class Tally:
    """What all connections saw together; times in seconds."""

    accepted: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    first_refusal: str = ""


class Client(asyncio.Protocol):
    """One connection: posts, reads the whole answer, posts the next; done when there is none."""

    def __init__(self, requests: Iterator[bytes], tally: Tally) -> None:
        self.requests, self.tally = requests, tally
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.held = b""
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send_next(self) -> None:
        request = next(self.requests, None)
        if request is None:
            self.done.set_result(None)
            self.transport.close()
            return
        self.sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.held += data
        head = self.held.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self.held, 0, head + 2)
        assert length, f"an answer without a length: {self.held[:head]!r}"
        end = head + 4 + int(length[1])
        if len(self.held) < end:
            return
        tally = self.tally
        tally.times.append(time.perf_counter() - self.sent)
        status = int(self.held[9:12])
        tally.statuses[status] += 1
        if found := _ACCEPTED.search(self.held, head):
            tally.accepted += int(found[1])
        elif status != 200 and not tally.first_refusal:
            tally.first_refusal = self.held[head + 4 : end].decode(errors="replace")[:300]
        self.held = self.held[end:]
        self.send_next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed the connection"))


async def load(host: str, port: int, clients: int, requests: list[bytes]) -> dict[str, Any]:
    tally, following, loop = Tally(), iter(requests), asyncio.get_running_loop()
    connected = [await loop.create_connection(lambda: Client(following, tally), host, port) for _ in range(clients)]
    cpu, started = time.process_time(), time.perf_counter()
    for _, client in connected:
        client.send_next()
    await asyncio.gather(*(client.done for _, client in connected))
    seconds = time.perf_counter() - started
    times = sorted(tally.times)
    return {
        "requests": len(times),
        "accepted": tally.accepted,
        "statuses": {str(status): count for status, count in tally.statuses.items()},
        "first_refusal": tally.first_refusal,
        "seconds": round(seconds, 3),
        "cpu_share": round((time.process_time() - cpu) / seconds, 3),
        "p50_ms": round(times[len(times) // 2] * 1e3, 2),
        "p99_ms": round(times[int(len(times) * 0.99)] * 1e3, 2),
    }


def main() -> None:
    host, port, path, clients = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: "
    requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in sys.stdin.buffer.read().splitlines() if body]
    print(json.dumps(run(load(host, port, clients, requests))))


if __name__ == "__main__":
    main()
