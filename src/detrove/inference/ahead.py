"""Work on what comes next while the model computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

MOST_THREADS = 4


def ahead(items: Iterable[Item], make: Callable[[Item], Made], depth: int) -> Generator[Made, None, None]:
    """`make` of every item, in their order, made by threads while the caller is busy with earlier ones.

    At most `depth` are made, or being made, beyond the one last handed out, so memory stays bounded and an endless
    `items` may be given; it is read by the caller's thread alone. What `make` raises is raised in its place.
    """
    items = iter(items)
    waiting: deque[Future[Any]] = deque()
    threads = max(1, min(depth, MOST_THREADS, os.cpu_count() or 1))
    with ThreadPoolExecutor(threads, thread_name_prefix="detrove-ahead") as pool:
        try:
            waiting.extend(pool.submit(make, item) for item in islice(items, depth))
            while waiting:
                made = waiting.popleft().result()
                waiting.extend(pool.submit(make, item) for item in islice(items, 1))
                yield made
        finally:
            for future in waiting:
                future.cancel()
