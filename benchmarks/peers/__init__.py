"""Detectors of other packages, trained on the same pictures; see `little_data.py`."""
