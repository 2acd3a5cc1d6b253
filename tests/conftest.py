"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real pictures and weights that stands beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"real pictures and weights are missing: no folder {SHARED.name}/ beside the checkout")
    return SHARED
