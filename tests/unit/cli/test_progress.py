"""Where no terminal is, progress is plain lines, and only for work that takes long."""

from __future__ import annotations

import io
import sys

import pytest

from detrove.cli import progress


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.told("measuring", 10) as tell:
        for done in range(1, 11):
            tell(done)
    assert capsys.readouterr() == ("", "")


def test_long_work_says_what_is_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 40.0, 45.0, 80.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.told("measuring", 10) as tell:
        for done in (1, 4, 5, 8):
            tell(done)
    assert capsys.readouterr().err.splitlines() == [
        "measuring: 4 of 10 pictures, 0.1 a second, 60 s left",
        "measuring: 8 of 10 pictures, 0.1 a second, 20 s left",
    ]


def test_an_unknown_total_leaves_nothing_to_say_of_the_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.told("walk.mp4", 0, "frames") as tell:
        tell(80)
    assert capsys.readouterr().err == "walk.mp4: 80 frames, 2 a second\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.told("measuring", 10) as tell:
        tell(4)
    assert "measuring" in terminal.getvalue()
    assert "/10" in terminal.getvalue()
