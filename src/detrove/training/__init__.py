"""Training: from a labelled data set to a run folder with a measured detector."""

from detrove.training.config import TrainingConfig, parse_setting
from detrove.training.train import Run, run, train

__all__ = ["Run", "TrainingConfig", "parse_setting", "run", "train"]
