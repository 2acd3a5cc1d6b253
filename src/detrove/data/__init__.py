"""Labelled pictures: readers for COCO JSON, VOC XML and YOLO text, random changes, batches, and a generated set."""

from detrove.data.batching import collate, evaluation_loader, training_loader
from detrove.data.dataset import DetectionDataset, Record, Sample
from detrove.data.discover import find_format, find_splits, open_dataset
from detrove.data.transforms import Augmentation, evaluation_sample, training_sample

__all__ = [
    "Augmentation",
    "DetectionDataset",
    "Record",
    "Sample",
    "collate",
    "evaluation_loader",
    "evaluation_sample",
    "find_format",
    "find_splits",
    "open_dataset",
    "training_loader",
    "training_sample",
]
