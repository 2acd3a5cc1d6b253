"""Seeing why: what attention did in one picture."""

from detrove.study.record import Recording, record

__all__ = ["Recording", "record"]
