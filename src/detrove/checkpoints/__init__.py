"""Checkpoints that describe themselves: one safetensors file is enough to predict, and nothing is ever unpickled."""

from detrove.checkpoints.native import Checkpoint, read, save
from detrove.checkpoints.weights import LoadReport, load_weights

__all__ = ["Checkpoint", "LoadReport", "load_weights", "read", "save"]
