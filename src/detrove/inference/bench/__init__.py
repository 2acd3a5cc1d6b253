"""How fast a detector is here and now, stage by stage."""

from detrove.inference.bench.machine import matrix_product_peak, processor, resident_memory
from detrove.inference.bench.measure import Bench, measure
from detrove.inference.bench.stages import STAGES, Timeline, watch_model

__all__ = [
    "STAGES",
    "Bench",
    "Timeline",
    "matrix_product_peak",
    "measure",
    "processor",
    "resident_memory",
    "watch_model",
]
