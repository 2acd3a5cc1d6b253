"""Ctrl-C that ends a training cleanly."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """While active, the first Ctrl-C only sets `requested`; any further one raises `KeyboardInterrupt`.

    Outside the main thread, where Python allows no signal handlers, it does nothing. Processes that load pictures
    inherit the handler and ignore Ctrl-C: the trainer stops them.
    """

    def __init__(self) -> None:
        self.requested = False
        self._process = os.getpid()
        self._previous: Any = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if os.getpid() != self._process:
            return
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
