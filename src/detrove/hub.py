"""The Hugging Face hub, without waiting for one that cannot be reached."""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

PATIENCE = 5.0
"""Seconds in which the hub's host has to accept a connection."""
MOST_ADDRESSES = 4
"""Of the host that are tried."""
PORTS = {"https": 443, "http": 80}


@contextmanager
def offline_where_unreachable() -> Iterator[None]:
    """In this block the hub's client looks into its cache alone where the hub does not answer.

    By itself it asks again and again: without a network, three quarters of a minute for one trunk, also for one that is
    in its cache. `HF_HUB_OFFLINE` decides as ever where it is set.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not is_within_reach(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def is_within_reach(address: str) -> bool:
    """Whether the host of a web address accepts a connection; one behind a proxy is taken to. Asked once a minute."""
    parts = urlsplit(address)
    if parts.hostname is None or {parts.scheme, "all"} & getproxies().keys():
        return True
    return _accepts(parts.hostname, parts.port or PORTS.get(parts.scheme, 443), int(time.monotonic() / 60))


@functools.cache
def _accepts(host: str, port: int, minute: int) -> bool:  # noqa: ARG001
    """Whether one of the host's addresses accepts a connection, all within `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    hosts = [str(address[0]) for *_, address in found][:MOST_ADDRESSES]
    for number, address in enumerate(hosts):
        share = (deadline - time.monotonic()) / (len(hosts) - number)  # the first may be dead, and the second not
        try:
            socket.create_connection((address, port), max(0.1, share)).close()
        except OSError:
            continue
        return True
    return False
