"""`detrove data VERB`: looking after data sets. Each verb has a file of its own, `data_VERB.py`, and is listed here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cyclopts import App

from detrove.cli.data_check import check_data
from detrove.cli.data_convert import convert_data
from detrove.cli.data_show import show_data
from detrove.cli.data_split import split_data

VERBS: dict[str, Callable[..., Any]] = {
    "check": check_data,
    "show": show_data,
    "convert": convert_data,
    "split": split_data,
}
"""What `detrove data` can do, in the order in which its help lists it."""


def make_data_app(place: int) -> App:
    """The group of verbs for data sets; `place` is its own among the verbs of `detrove`."""
    app = App(name="data", help="Look after a data set.", help_format="plaintext", sort_key=place)
    for number, (name, verb) in enumerate(VERBS.items()):
        app.command(verb, name=name, sort_key=number, help_format="markdown")
    return app
