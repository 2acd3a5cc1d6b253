"""Checkpoints that describe themselves, and a reader for everybody else's that unpickles nothing but tensors."""

from detrove.checkpoints.native import Checkpoint, save
from detrove.checkpoints.reading import read
from detrove.checkpoints.weights import HeadReport, LoadReport, fit_heads, load_weights, objectness_keys

__all__ = [
    "Checkpoint",
    "HeadReport",
    "LoadReport",
    "fit_heads",
    "load_weights",
    "objectness_keys",
    "read",
    "save",
]
