"""What one service takes on at once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from detrove.errors import InputError

MOST_MEGAPIXELS = 178.0
"""Beyond it Pillow refuses a picture by itself."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a service; what goes beyond them is refused before it costs anything.

    `megabytes` of one request's body; `megapixels` of one picture, read from its header; `pictures` in one request;
    `queue`, the pictures that may wait; `requests` that may be on their way in at once; `batch`, the pictures computed
    together; `seconds` for a request to arrive, and as many again for its answer.

    Uploads take at most `megabytes` times `requests` and `queue` together; a picture that is decoded `megapixels` times
    8 bytes or so, with transparency 20.
    """

    megabytes: float = 20.0
    megapixels: float = 50.0
    pictures: int = 16
    queue: int = 32
    requests: int = 32
    batch: int = 8
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise InputError(f"--max-{name} must be above 0, got {value:g}")
        if self.megapixels > MOST_MEGAPIXELS:
            raise InputError(f"--max-megapixels can be at most {MOST_MEGAPIXELS:g}, got {self.megapixels:g}")
        if self.pictures > self.queue:
            raise InputError(
                f"--max-pictures {self.pictures} of one request would never fit into --max-queue {self.queue}: "
                "lower the one or raise the other"
            )

    @property
    def body_bytes(self) -> int:
        """Of one request's body."""
        return round(self.megabytes * 1e6)

    @property
    def pixels(self) -> int:
        """Of one picture."""
        return round(self.megapixels * 1e6)
