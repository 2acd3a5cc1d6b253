"""Checkpoints that describe themselves, and a reader for everybody else's that unpickles nothing but tensors."""

from detrove.checkpoints.native import Checkpoint, save
from detrove.checkpoints.reading import read
from detrove.checkpoints.weights import LoadReport, load_weights

__all__ = ["Checkpoint", "LoadReport", "load_weights", "read", "save"]
