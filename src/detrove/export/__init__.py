"""A trained detector in other forms: faster ones, and files for other programs."""

from detrove.export.optimize import optimize

__all__ = ["optimize"]
