"""`detrove serve`: a detector as an HTTP service with a page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from detrove.cli.predict import set_tiling, with_engine
from detrove.errors import InputError
from detrove.tiling import asked_tiling

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def serve(
    weights: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: Annotated[str | None, Parameter(env_var="DETROVE_API_KEY")] = None,
    model: str | None = None,
    engine: str | None = None,
    precision: str = "float32",
    tiles: int | None = None,
    tile_overlap: float | None = None,
    max_megabytes: float = 20.0,
    max_megapixels: float = 50.0,
    max_pictures: int = 16,
    max_queue: int = 32,
    max_requests: int = 32,
    max_batch: int = 8,
    max_seconds: float = 30.0,
) -> None:
    """Answer over HTTP, with a page that shows why.

    Open the address that it prints; /docs describes the API. Ctrl+C or SIGTERM stops it when all it accepted is
    answered. Logs are JSON lines on standard error.

    Parameters
    ----------
    weights
        A run folder, a .safetensors file that detrove saved, an official checkpoint, a Hugging Face folder, or an
        exported file.
    host
        The address to listen on. By default only this machine can connect; 0.0.0.0: every network it is on.
    port
        The port to listen on; 0: any free one.
    api_key
        A secret that requests must send, as "Authorization: Bearer KEY". Best set as DETROVE_API_KEY: what stands on
        a command line can be read by others on the machine.
    model
        The catalogue's name of the detector, where its file alone cannot tell.
    engine
        Compute faster by: torch, onnxruntime or openvino. By default the model runs as it was trained.
    precision
        What the engine computes in: float32, or bfloat16 or float16 where the machine has it.
    tiles
        Cut large pictures into tiles of this many pixels and look at each, and at the whole; 0: whole pictures only. By
        default as the detector was trained.
    tile_overlap
        What neighbouring tiles share, 0 to 0.8 of their side. Default 0.2.
    max_megabytes
        Of one request.
    max_megapixels
        Of one picture; a larger one is refused before it is decoded.
    max_pictures
        In one request.
    max_queue
        Pictures that may wait. Whoever comes then is told to come again (429, with Retry-After).
    max_requests
        Requests that may be arriving at once.
    max_batch
        Pictures of one size that are computed together, where so many wait.
    max_seconds
        For a request to arrive, and as many again for its answer.
    """
    from detrove.serving.limits import Limits

    limits = Limits(max_megabytes, max_megapixels, max_pictures, max_queue, max_requests, max_batch, max_seconds)
    asked_tiling(tiles, tile_overlap)  # refuses what cannot be before anything is read
    if api_key is not None and not api_key.strip():
        raise InputError("the API key is empty: set one, or leave --api-key and DETROVE_API_KEY out")
    _refuse_missing_packages()
    from detrove.inference import load
    from detrove.serving.run import run

    detector = with_engine(load(weights, model), engine, precision)
    set_tiling(detector, tiles, tile_overlap)
    if host not in LOOPBACK and api_key is None:
        print(f"listening on {host} without an API key: whoever reaches this port may use it", file=sys.stderr)
    run(detector, host, port, limits, api_key)


def _refuse_missing_packages() -> None:
    from importlib.util import find_spec

    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise InputError(f'detrove serve needs {" and ".join(missing)}: pip install "detrove[serve]"')
