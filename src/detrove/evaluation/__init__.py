"""How good a detector is: COCO metrics, score thresholds, kinds of errors, and the report that shows them."""

from detrove.evaluation.classes import categories_of_slots, coco_results
from detrove.evaluation.detect import detect
from detrove.evaluation.errors import ErrorAnalysis, analyse_errors
from detrove.evaluation.evaluate import evaluate
from detrove.evaluation.metrics import METRIC_NAMES, Metrics, coco_metrics
from detrove.evaluation.report import write_report
from detrove.evaluation.thresholds import best_thresholds

__all__ = [
    "METRIC_NAMES",
    "ErrorAnalysis",
    "Metrics",
    "analyse_errors",
    "best_thresholds",
    "categories_of_slots",
    "coco_metrics",
    "coco_results",
    "detect",
    "evaluate",
    "write_report",
]
