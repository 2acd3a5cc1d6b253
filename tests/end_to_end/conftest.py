"""What several tests of whole commands share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from detrove.inference import Detector


@contextmanager
def serve(detector: Detector) -> Iterator[str]:
    """The service within this process, behind a real socket: its address, for as long as the block lasts."""
    import uvicorn

    from detrove.serving.application import make_app
    from detrove.serving.run import listen

    server = uvicorn.Server(uvicorn.Config(make_app(detector), log_config=None, access_log=False))
    listening = listen("127.0.0.1", 0, 30)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="session")
def served() -> Callable[[Detector], AbstractContextManager[str]]:
    """`serve`: test modules cannot import from here."""
    return serve
