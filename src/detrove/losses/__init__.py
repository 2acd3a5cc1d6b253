"""Matching predictions to objects, and the losses that follow from the match."""

from detrove.losses.criterion import Criterion
from detrove.losses.matcher import MatchCost, Matches, match

__all__ = ["Criterion", "MatchCost", "Matches", "match"]
