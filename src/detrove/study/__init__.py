"""Seeing why: what attention did in one picture, what queries do over a data set, and which detector learns what."""

from detrove.study.compare import Comparison, compare
from detrove.study.experiments import experiment
from detrove.study.picture import Study, study_picture
from detrove.study.queries import QueryStudy, study_queries
from detrove.study.record import Recording, record
from detrove.study.study_report import write_study

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
