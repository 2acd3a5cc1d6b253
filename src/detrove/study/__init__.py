"""Seeing why: what attention did in one picture, what queries do over a data set, and which detector learns what."""

from detrove.study.compare import Comparison, compare
from detrove.study.experiments import experiment
from detrove.study.queries import QueryStudy, study_queries
from detrove.study.record import Recording, record

__all__ = ["Comparison", "QueryStudy", "Recording", "compare", "experiment", "record", "study_queries"]
