"""Seeing why: what attention did in one picture, what queries do over a data set, and which detector learns what.

Only the recorder comes with the package; the other names are imported when they are first used, since most of them
draw. A service that explains its answers, and a training, pay for no figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrove.lazily import imported_on_use
from detrove.study.record import Recording, record

if TYPE_CHECKING:
    from detrove.study.comparison import Comparison, compare
    from detrove.study.experiments import experiment
    from detrove.study.picture import Study, study_picture
    from detrove.study.queries import QueryStudy, study_queries
    from detrove.study.study_report import write_study

_HOMES = {
    "Comparison": "detrove.study.comparison",
    "QueryStudy": "detrove.study.queries",
    "Study": "detrove.study.picture",
    "compare": "detrove.study.comparison",
    "experiment": "detrove.study.experiments",
    "study_picture": "detrove.study.picture",
    "study_queries": "detrove.study.queries",
    "write_study": "detrove.study.study_report",
}
"""None of them may be a file of this folder: importing the file would put it in the name's place. `record` is one, and
comes at once."""

__all__ = [
    "Comparison",
    "QueryStudy",
    "Recording",
    "Study",
    "compare",
    "experiment",
    "record",
    "study_picture",
    "study_queries",
    "write_study",
]

__getattr__ = imported_on_use(__name__, globals(), _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
