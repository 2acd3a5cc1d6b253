"""Labelled pictures: readers for COCO JSON, VOC XML and YOLO text, random changes, batches, and a generated set."""

from detrove.data.batching import collate, training_loader
from detrove.data.dataset import DetectionDataset, Record, Sample
from detrove.data.discover import LenientReading, find_format, find_splits, open_dataset, read_leniently
from detrove.data.faults import Fault
from detrove.data.transforms import Augmentation, evaluation_sample, training_sample

__all__ = [
    "Augmentation",
    "DetectionDataset",
    "Fault",
    "LenientReading",
    "Record",
    "Sample",
    "collate",
    "evaluation_sample",
    "find_format",
    "find_splits",
    "open_dataset",
    "read_leniently",
    "training_loader",
    "training_sample",
]
