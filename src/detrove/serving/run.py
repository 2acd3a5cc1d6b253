"""Serving until told to stop, and then answering what was accepted."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from detrove.errors import InputError
from detrove.inference import Detector
from detrove.serving.application import make_app
from detrove.serving.limits import Limits
from detrove.serving.logs import log_to

MOST_CONNECTIONS = 512
KEEP_ALIVE = 15
"""Seconds that an idle connection stays open, and that its first request may take to begin."""


def run(detector: Detector, host: str, port: int, limits: Limits, api_key: str | None = None) -> None:
    """Serve a detector until SIGINT or SIGTERM; then take nothing new on, and return when all is answered."""
    listening = listen(host, port, limits.seconds)
    log_to(sys.stderr)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(detector, limits, api_key),
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE,
            http=Impatient,
            h11_max_incomplete_event_size=64 * 1024,
        )
    )
    print(f"serving on http://{_shown(host)}:{listening.getsockname()[1]}/ until Ctrl+C", file=sys.stderr, flush=True)
    with _ending_well():
        server.run(sockets=[listening])


def listen(host: str, port: int, seconds: float) -> socket.socket:
    """A listening socket; a connection whose client takes nothing for so many seconds is dropped, on Linux."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"cannot listen on {host}:{port} ({reason}): name another --port or --host") from None
    timeout: Any = getattr(socket, "TCP_USER_TIMEOUT", None)
    if timeout is not None:
        listening.setsockopt(socket.IPPROTO_TCP, timeout, round(seconds * 1000))
    return listening


class Impatient(H11Protocol):
    """uvicorn's HTTP, closing a connection whose first request has not begun after `KEEP_ALIVE` seconds.

    uvicorn itself waits for ever, and counts it among those that it takes.
    """

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._waiting = self.loop.call_later(KEEP_ALIVE, self._close_unless_asked)

    def connection_lost(self, exc: Exception | None) -> None:
        """There is nothing to wait for any more."""
        self._waiting.cancel()
        super().connection_lost(exc)

    def _close_unless_asked(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


@contextmanager
def _ending_well() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more when it is done; being told to stop is no error."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
