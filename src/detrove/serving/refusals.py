"""A request that is not answered, and why: one line that the client can act on."""

from __future__ import annotations

import math


class Refusal(Exception):
    """Becomes `{"error": message}` with an HTTP status; `retry_after` seconds become the header of that name."""

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, at least one, where trying again makes sense."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
