"""What a client is told when something is wrong: `{"error": {"field", "reason", "hint"?, "request_id"?}}`.

400  the bytes cannot be read: malformed JSON, not UTF-8, broken percent-encoding
403  a browser page of another site tries to write
404  no such address, no such entity
405  the address exists, the method does not
413  more than is accepted at once
422  it can be read, but a field breaks the contract
500  unforeseen: logged with a traceback under `request_id`
503  not now: the log or a store is unavailable, too much is waiting, or the state is too far behind the log;
     `Retry-After` says when
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, InternalServerException

from mainstem.schema.errors import InvalidRecord, LogError, NotReady, StoreError
from mainstem.schema.ids import fresh_id

__all__ = ["Fault", "FaultBody", "TooFarBehind", "answer", "explain", "fault_of", "nearest"]

logger = logging.getLogger("mainstem.serve")

RETRY_AFTER_S = 1


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`field` is the path of what is wrong (`events[3].time`), empty where no field is to blame."""

    field: str
    reason: str
    hint: str | None = None
    request_id: str | None = None


class FaultBody(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: Explanation


class Fault(InvalidRecord):
    """An InvalidRecord with a status of its own and a hint."""

    def __init__(self, field: str, reason: str, *, status: int = 422, hint: str | None = None) -> None:
        super().__init__(field, reason)
        self.status = status
        self.hint = hint


class TooFarBehind(NotReady):
    """The state is more records behind the log than is allowed: writes wait until it has caught up."""

    def __init__(self, behind: int, most: int) -> None:
        super().__init__(
            f"nothing was written: the state is {behind} records behind the log, and at more than {most} writes are "
            "refused until it has caught up"
        )
        self.behind = behind


def nearest(name: str, known: Iterable[str]) -> str | None:
    """`did you mean X?` for the closest of `known`, if any is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else None


def fault_of(error: Exception) -> tuple[int, Explanation]:
    """Status and explanation of any exception; what is unforeseen is logged here."""
    match error:
        case Fault():
            return error.status, Explanation(field=error.field, reason=error.reason, hint=error.hint)
        case InvalidRecord():
            return 422, Explanation(field=error.field, reason=error.reason)
        case TooFarBehind():  # one for every write while it lasts: the edge logs its begin and its end
            return 503, Explanation(field="", reason=str(error), hint="try again")
        case StoreError() | LogError() | NotReady():
            logger.warning("not available: %s: %s", type(error).__name__, error)
            return 503, Explanation(field="", reason=str(error) or "not available", hint="try again")
        case InternalServerException() if "disconnected" in error.detail:
            return 400, Explanation(field="body", reason="the connection closed before the body ended")
        case HTTPException() if error.status_code < 500:
            return error.status_code, _of_http(error)
    request_id = fresh_id("fault")
    logger.error("unforeseen, request_id %s", request_id, exc_info=error)
    return 500, Explanation(field="", reason="unforeseen; the server's log says more", request_id=request_id)


def _of_http(error: HTTPException) -> Explanation:
    match error.status_code:
        case 404:
            return Explanation(field="path", reason="no such address", hint="/docs lists the addresses")
        case 405:
            return Explanation(field="method", reason="not allowed here", hint="/docs lists the methods")
        case 413:
            return Explanation(field="body", reason="too large")
    return Explanation(field="request", reason=error.detail or "cannot be read")


def answer(error: Exception, max_body: int | None = None) -> tuple[int, bytes, dict[str, str]]:
    """Status, JSON body and extra headers for `error`."""
    status, explanation = fault_of(error)
    if status == 413 and explanation.field == "body" and max_body is not None:
        explanation = msgspec.structs.replace(explanation, reason=f"too large; at most {max_body} bytes are accepted")
    headers = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else {}
    if isinstance(error, HTTPException) and error.headers:
        headers.update({name: value for name, value in error.headers.items() if name.lower() == "allow"})
    return status, msgspec.json.encode(FaultBody(explanation)), headers


def explain(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The exception handler of the application."""
    max_body = None
    handler = request.scope.get("route_handler")
    if handler is not None and hasattr(handler, "resolve_request_max_body_size"):
        max_body = handler.resolve_request_max_body_size()
    status, body, headers = answer(error, max_body)
    return Response(body, status_code=status, media_type="application/json", headers=headers)
