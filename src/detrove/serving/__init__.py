"""A trained detector as an HTTP service, with a page that shows what it sees and why.

`make_app` gives the application, `run` serves it. Pictures come in over `/v1/detect`, are looked at before they are
decoded (`uploads`), wait in a bounded queue and are computed by one thread, those of one size together (`worker`).
"""

from __future__ import annotations

from detrove.serving.limits import Limits

__all__ = ["Limits"]
