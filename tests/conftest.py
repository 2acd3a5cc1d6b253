"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real pictures and weights that stands beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"real pictures and weights are missing: no folder {SHARED.name}/ beside the checkout")
    return SHARED


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each of several workers begins with tests that follow one another, and takes of the others' when it has done.

    So what tests share is made once. By xdist's own default neighbours are dealt out to all workers, and each makes it.
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow is all that is beside the unit tests: every detector, real sets, other implementations, whole commands."""
    folders = [Path(__file__).parent / name for name in ("catalogue", "end_to_end", "parity", "property")]
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in folders):
            item.add_marker(pytest.mark.slow)
