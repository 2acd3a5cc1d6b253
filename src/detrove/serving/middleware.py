"""Around every request: bounds on its body, a log line, counts, and headers that keep a page to itself."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detrove.serving.limits import Limits
from detrove.serving.metrics import Metrics
from detrove.serving.refusals import Refusal

logger = logging.getLogger("detrove.serving.access")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
)


class Observed:
    """Logs and counts each request, and gives it a name that stands in its answer's X-Request-ID and in the log.

    `paths` are those that are counted by their own name, so that invented ones do not fill the memory; nor do methods.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, received = time.perf_counter(), 0, 0
        scope.setdefault("state", {})["request_id"] = name = uuid.uuid4().hex[:16]

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *HEADERS, (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self.app(scope, counted, named)
        finally:
            self._tell(scope, status or 500, received, time.perf_counter() - started)

    def _tell(self, scope: Scope, status: int, received: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.metrics.requests.labels(method, path, status).inc()
        self.metrics.request_seconds.labels(path).observe(seconds)
        self.metrics.received_bytes.inc(received)
        client = scope.get("client")
        logger.info(
            "request",
            extra={
                "request_id": scope["state"]["request_id"],
                "client": client[0] if client else None,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "received_bytes": received,
                "seconds": round(seconds, 4),
            },
        )


class BoundedBodies:
    """Stops reading a body that is too large (413) or too slow (408).

    Where a request is refused unread and its connection will be closed, the rest of its body is thrown away first: to
    close on a client that is still sending would reset the connection, and the answer would be lost.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        too_large = declared.isdigit() and int(declared) > self.limits.body_bytes
        closing = headers.get(b"connection", b"").lower() == b"close" or scope["http_version"] == "1.0"
        deadline = time.monotonic() + self.limits.seconds
        received, complete = 0, declared == b"0" and b"transfer-encoding" not in headers

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:  # what comes now is only the news that the client has left
                return await receive()
            if too_large:
                raise self._too_large()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise Refusal(408, f"the request did not arrive within {self.limits.seconds:g} s") from None
            received += len(message.get("body", b""))
            if received > self.limits.body_bytes:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start" and closing and b"expect" not in headers:
                try:
                    while not complete:
                        await bounded()
                except Refusal:
                    pass
            await send(message)

        await self.app(scope, bounded, answering)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the request is larger than {self.limits.megabytes:g} MB: send fewer or smaller pictures")
