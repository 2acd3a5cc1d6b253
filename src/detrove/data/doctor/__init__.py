"""The doctor: what is wrong with a data set, what it means for training, and a cleaned copy.

`check` reads a data set past every fault and gives a `Diagnosis` of `Finding`s; `clean` takes from it what is sound,
`write_cleaned` writes that.
"""

from detrove.data.doctor.check import Diagnosis, check, examine
from detrove.data.doctor.cleaning import Cleaned, clean, write_cleaned
from detrove.data.doctor.findings import Finding, Place

__all__ = ["Cleaned", "Diagnosis", "Finding", "Place", "check", "clean", "examine", "write_cleaned"]
