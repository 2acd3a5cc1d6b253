"""From a file of weights and a picture to detections."""

from detrove.inference.detector import Detector
from detrove.inference.load import load
from detrove.inference.postprocess import postprocess

__all__ = ["Detector", "load", "postprocess"]
