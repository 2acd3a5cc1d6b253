"""Several processes that one call starts: what they answer, and what becomes of a fault in one of them."""

import os
import signal
import time
from pathlib import Path

import pytest

from detrove.errors import InputError
from detrove.training import launch as launching
from detrove.training.launch import launch
from detrove.training.processes import ProcessLost


def place(word: str) -> tuple[str, ...]:
    return (word, *(os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))


def fail(rank: int, how: str) -> None:
    """What befalls one process; the other waits for it, as it would in a step."""
    if int(os.environ["RANK"]) != rank:
        if how == "refuse":
            raise ProcessLost("the other has gone")
        time.sleep(60)
    elif how == "refuse":
        raise InputError("the picture is no picture")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(autouse=True)
def findable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes that are started find this module by its name, from wherever pytest was called."""
    monkeypatch.syspath_prepend(Path(__file__).parents[__name__.count(".")])


@pytest.mark.slow
def test_the_first_answers():
    assert launch(2, place, {"word": "here"}) == ("here", "0", "2", "0", "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "how", "words"),
    [(1, "refuse", "the picture is no picture"), (1, "kill", r"process 2 of 2 was killed.*--resume")],
)
def test_a_fault_is_told_once_and_ends_all(rank: int, how: str, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launching, "GRACE", 1.0)
    with pytest.raises(InputError, match=words):
        launch(2, fail, {"rank": rank, "how": how})


def test_what_cannot_be_launched(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="at least 1"):
        launch(0, place, {"word": ""})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="leave it out"):
        launch(2, place, {"word": ""})
