"""The hub is asked only where it answers."""

from __future__ import annotations

import socket
import warnings
from typing import Any

import pytest
from huggingface_hub import constants

from detrove import hub
from detrove.hub import is_within_reach, offline_where_unreachable
from detrove.nn.backbone import download_body


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub._accepts.cache_clear()


def nowhere(*_: Any, **__: Any) -> Any:
    raise socket.gaierror(-2, "Name or service not known")


def test_all_addresses_share_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall that drops packets: each address would take its time."""
    now, waited = [1000.0], []

    def dropped(address: Any, timeout: float) -> Any:
        waited.append(timeout)
        now[0] += timeout
        raise TimeoutError

    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"10.0.0.{last}", 443)) for last in range(9)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    monkeypatch.setattr(socket, "create_connection", dropped)
    monkeypatch.setattr(hub.time, "monotonic", lambda: now[0])
    assert not is_within_reach("https://hub.example")
    assert sum(waited) < hub.PATIENCE + 0.1
    assert not is_within_reach("https://hub.example")  # known for a minute
    assert waited == pytest.approx([hub.PATIENCE / 4] * 4)


def test_a_host_that_listens_is_within_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert is_within_reach(f"http://127.0.0.1:{port}")
    hub._accepts.cache_clear()
    assert not is_within_reach(f"http://127.0.0.1:{port}")


def test_what_is_behind_a_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("asked"))
    for proxies in ({"https": "http://proxy:8080"}, {"all": "socks5://proxy:1080"}):
        monkeypatch.setattr(hub, "getproxies", lambda proxies=proxies: proxies)
        assert is_within_reach("https://hub.example")


def test_the_client_is_offline_in_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    with offline_where_unreachable():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    with pytest.raises(KeyError), offline_where_unreachable():
        raise KeyError
    assert not constants.HF_HUB_OFFLINE


def test_a_trunk_offline_is_not_asked_for_over_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client refuses each request at once, instead of trying it five times."""
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert download_body("mobilenetv2_110d") is None
    assert "no pretrained weights for backbone mobilenetv2_110d" in str(told[-1].message)
