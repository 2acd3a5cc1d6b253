"""Over real sockets: clients that stop, leave, drip or come in crowds; and what the API answers to nonsense."""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from detrove.errors import InputError
from detrove.inference import Detector
from detrove.serving.application import make_app
from detrove.serving.limits import Limits
from detrove.serving.run import Impatient, listen
from detrove.serving.service import Service

LIMITS = Limits(megabytes=0.5, pictures=2, queue=3, requests=4, seconds=3)


@dataclass
class Served:
    """An application behind a socket."""

    app: FastAPI
    server: uvicorn.Server
    port: int

    @property
    def service(self) -> Service:
        return self.app.state.service

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def detect(self, file: bytes) -> httpx.Response:
        return httpx.post(self.url("/v1/detect"), files={"files": ("a.png", file)}, timeout=60)

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(sent)
        return connection


@pytest.fixture
def serve() -> Iterator[Callable[[Detector], Served]]:
    running: list[tuple[Served, threading.Thread]] = []

    def start(detector: Detector) -> Served:
        app = make_app(detector, LIMITS)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        listening = listen("127.0.0.1", 0, LIMITS.seconds)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        wait_until(lambda: server.started)
        running.append((Served(app, server, listening.getsockname()[1]), thread))
        return running[-1][0]

    yield start
    for served, thread in running:
        served.server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Held(Detector):
    """Answers when it is allowed to."""

    def __init__(self, other: Detector) -> None:
        super().__init__(other.model, other.preprocessing, other.label_map, other.thresholds)
        self.go = threading.Event()

    def detect(self, pictures):
        assert self.go.wait(60)
        return super().detect(pictures)


@pytest.fixture
def held(detector: Detector) -> Iterator[Held]:
    held = Held(detector)
    yield held
    held.go.set()


def post(file: bytes, length: int | None = None, connection: str = "keep-alive") -> bytes:
    """A request as bytes, that perhaps promises more than it holds."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + file + b"\r\n--x--\r\n"
    head = (
        f"POST /v1/detect HTTP/1.1\r\nHost: here\r\nConnection: {connection}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


def answer_of(connection: socket.socket) -> tuple[int, bytes]:
    """Status and all bytes of the one answer on a connection; its body may come after its head."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(1 << 16)
    head, _, body = answer.partition(b"\r\n\r\n")
    [length] = re.findall(rb"content-length: (\d+)", head.lower())
    while len(body) < int(length):
        body += connection.recv(1 << 16)
    return int(head.split()[1]), head + b"\r\n\r\n" + body


def test_truncated_uploads_leave_nothing_behind(
    serve: Callable[[Detector], Served], detector: Detector, file: bytes
) -> None:
    served = serve(detector)
    for kept in (10, 200, len(post(file)) - 5):
        served.connect(post(file)[:kept]).close()
    wait_until(lambda: served.service.arriving == 0 and not served.server.server_state.connections)
    assert served.detect(file).status_code == 200


def test_a_dripping_upload_is_cut_off(serve: Callable[[Detector], Served], detector: Detector, file: bytes) -> None:
    served = serve(detector)
    dripping = served.connect(post(file, length=400_000))
    assert served.detect(file).status_code == 200
    status, text = answer_of(dripping)
    assert status == 408
    assert b"did not arrive within 3 s" in text
    assert served.service.arriving == 0


def test_fifty_clients_that_stop_reading(serve: Callable[[Detector], Served], detector: Detector, file: bytes) -> None:
    served = serve(detector)
    stopped = []
    for _ in range(50):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", served.port))
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: here\r\n\r\n" * 150)
        stopped.append(connection)
    wait_until(lambda: len(served.server.server_state.connections) >= 50)
    assert served.detect(file).status_code == 200
    assert httpx.get(served.url("/healthz")).status_code == 200
    if sys.platform == "linux":  # elsewhere they stay until they go by themselves
        wait_until(lambda: len(served.server.server_state.connections) < 10)
    for connection in stopped:
        connection.close()


def test_who_comes_to_a_full_queue_is_told_when_to_come_back(
    serve: Callable[[Detector], Served], held: Held, file: bytes
) -> None:
    served = serve(held)
    first = served.connect(post(file))
    wait_until(lambda: served.service.worker._computing == 1)
    waiting = [served.connect(post(file)) for _ in range(LIMITS.queue)]
    wait_until(lambda: served.service.worker.num_waiting == LIMITS.queue)
    refused = served.detect(file)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "3 pictures are waiting" in refused.json()["error"]
    # the refusal arrives also where the connection is closed on a client that would still be sending
    status, _ = answer_of(served.connect(post(bytes(450_000), connection="close")))
    assert status == 429
    held.go.set()
    assert [answer_of(one)[0] for one in (first, *waiting)] == [200] * 4
    assert served.detect(file).status_code == 200


def test_a_client_that_leaves_is_not_computed_for(serve: Callable[[Detector], Served], held: Held, file: bytes) -> None:
    served = serve(held)
    first = served.connect(post(file))
    wait_until(lambda: served.service.worker._computing == 1)
    for connection in [served.connect(post(file)) for _ in range(2)]:
        wait_until(lambda: served.service.worker.num_waiting > 0)
        connection.close()
    held.go.set()
    assert answer_of(first)[0] == 200
    wait_until(lambda: served.service.worker.num_waiting == 0)
    wait_until(lambda: b'status="499"' in served.service.metrics.text())


def test_an_answer_that_takes_too_long(serve: Callable[[Detector], Served], held: Held, file: bytes) -> None:
    served = serve(held)
    answer = served.detect(file)
    assert answer.status_code == 503
    assert "no answer within 3 s" in answer.json()["error"]
    held.go.set()
    assert served.detect(file).status_code == 200


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(InputError, match="in use"):
            listen("127.0.0.1", taken.getsockname()[1], 1)
        with pytest.raises(InputError, match="cannot listen"):
            listen("127.0.0.1", 99999, 1)
        with pytest.raises(InputError, match="cannot listen"):
            listen("no such host", 0, 1)


@pytest.mark.parametrize("begun", [b"", b"POST /v1/detect HTTP/1.1\r\nHost:"])
def test_a_connection_that_asks_for_nothing_is_closed(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detrove.serving.run.KEEP_ALIVE", 0.2)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(FastAPI(), http=Impatient, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        with socket.create_connection(listening.getsockname(), timeout=20) as silent:
            silent.sendall(begun)
            assert silent.recv(1) == b""
    finally:
        server.should_exit = True
        thread.join(timeout=20)
