"""Errors that are the user's to mend, told apart from our own faults.

`InputError` is raised where a file, a value or a data set is at fault. Its message is one line that names the
offending thing and the remedy; the command line prints it without a traceback and exits with status 2.
Everything else keeps its traceback: it is a fault of detrove.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The input is at fault; the message names what and how to mend it."""


class NotFiniteError(InputError):
    """Predictions, or the boxes that they are compared with, hold nan or inf."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A phrase that offers the choices closest to `name`, for an error message.

    >>> nearest("detrove-nan", ["detrove-nano", "conditional-r50"])
    'did you mean detrove-nano?'
    >>> nearest("x", ["detr-r50", "detr-nano"])
    'choose from detr-r50, detr-nano'
    """
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose from {', '.join(choices)}"
