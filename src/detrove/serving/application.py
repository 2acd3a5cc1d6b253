"""The HTTP application: its paths, its errors, its page."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from detrove.inference import Detector
from detrove.serving.explain import attention, explain
from detrove.serving.limits import Limits
from detrove.serving.middleware import BoundedBodies, Observed
from detrove.serving.refusals import Refusal
from detrove.serving.schemas import (
    AnnotationOut,
    AttentionOptions,
    AttentionOut,
    Detected,
    DetectOptions,
    Explained,
    ExplainOptions,
    Health,
    ImageOut,
    ModelOut,
    Options,
    Problem,
)
from detrove.serving.service import Service, json_body
from detrove.structures import Detections

PAGE = Path(__file__).parent / "page"
"""The folder of the page's files; they are served as they are."""

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

REASONS = {
    400: "The request cannot be read.",
    401: "The API key is missing or wrong.",
    408: "The request did not arrive in time.",
    409: "This detector cannot be looked into.",
    413: "More bytes or pixels than this service takes.",
    415: "Neither multipart/form-data nor application/json.",
    422: "Something in the request is wrong; the error says what.",
    429: "Busy; Retry-After says when to come again.",
    503: "No answer in time, or the service is not computing any more.",
}

bearer = HTTPBearer(auto_error=False, description="The service's API key, where it has one.")
key_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same, in a header of its own.")


def make_app(detector: Detector, limits: Limits | None = None, api_key: str | None = None) -> FastAPI:
    """The application that serves a detector; `app.state.service` is what it answers from.

    With an `api_key`, everything but the page's files and `/healthz` wants it.
    """
    limits = limits or Limits()
    service = Service(detector, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.worker.close()

    app = FastAPI(
        title="detrove",
        version=service.describe().detrove_version,
        description=f"Finds objects in pictures. Serves {service.describe().name}.",
        docs_url=None,  # those pages would ask the network
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    guard = [Depends(_key_check(api_key))] if api_key else []
    _add_pages(app)
    _add_health(app, service)
    _add_metrics(app, service, guard)
    _add_answers(app, service, guard)
    _add_errors(app)
    paths = [str(path) for route in app.routes if (path := getattr(route, "path", None))]
    app.add_middleware(BoundedBodies, limits=limits)
    app.add_middleware(Observed, metrics=service.metrics, paths=paths)
    return app


def _add_pages(app: FastAPI) -> None:
    """The page at /, the description at /docs, and their files."""

    def add(path: str, file: Path) -> None:
        @app.get(path, include_in_schema=False)
        async def page() -> Response:
            return FileResponse(file, media_type=KINDS[file.suffix], headers={"Cache-Control": "no-cache"})

    add("/", PAGE / "index.html")
    add("/docs", PAGE / "docs.html")
    for file in sorted(PAGE.iterdir()):
        if file.suffix in KINDS:
            add(f"/page/{file.name}", file)


def _add_health(app: FastAPI, service: Service) -> None:
    """For whoever keeps the service running."""

    @app.get("/healthz", tags=["operation"], responses=_problems(503))
    async def health() -> Health:
        """Whether the service can answer: 200, or 503 where it has to be started again."""
        if not service.worker.is_alive:
            raise Refusal(503, "the computing thread has died: start the service again")
        return Health(status="ok", waiting=service.worker.num_waiting)


def _add_metrics(app: FastAPI, service: Service, guard: list[Any]) -> None:
    """For whoever watches it."""

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse, dependencies=guard)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_answers(app: FastAPI, service: Service, guard: list[Any]) -> None:
    """What clients ask."""

    @app.get("/v1/model", tags=["detector"], dependencies=guard, responses=_problems(401))
    async def model() -> ModelOut:
        """What is served: its classes, its attention layers, and what a request may hold."""
        return service.describe()

    @app.post("/v1/detect", tags=["detector"], dependencies=guard, **_takes(DetectOptions, service.limits.pictures))
    async def detect(request: Request) -> Detected:
        """Find objects in one or several pictures."""
        uploads, options = await service.receive(request, DetectOptions, service.limits.pictures)
        seen = await service.detect(request, uploads)
        shown = [service.shown(one.detections, options.threshold, options.top_k) for one in seen]
        service.metrics.detections.inc(sum(map(len, shown)))
        images = [
            ImageOut(id=place, file_name=upload.name, width=one.width, height=one.height)
            for place, (upload, one) in enumerate(zip(uploads, seen, strict=True), start=1)
        ]
        return _detected(service, images, shown)

    @app.post("/v1/explain", tags=["detector"], dependencies=guard, **_takes(ExplainOptions, 1, 409))
    async def explain_one(request: Request) -> Explained:
        """Why is this box there? Its query, layer by layer: anchor, answer, and what it looks at."""
        (upload,), asked = await service.receive(request, ExplainOptions, 1)
        return await service.ask(
            request, upload, lambda detector, picture: explain(detector, picture, asked.bbox, asked.category_id)
        )

    @app.post("/v1/attention", tags=["detector"], dependencies=guard, **_takes(AttentionOptions, 1, 409))
    async def attention_of_one(request: Request) -> AttentionOut:
        """Where do the cells of the picture look? One head of one layer, with its Q, K and V."""
        (upload,), asked = await service.receive(request, AttentionOptions, 1)
        return await service.ask(
            request,
            upload,
            lambda detector, picture: attention(detector, picture, asked.layer, asked.head, asked.level),
        )


def _key_check(api_key: str) -> Callable[..., None]:
    """Refuses a request without the key; how long that takes tells nothing about the key."""
    expected = api_key.encode()

    def check(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
        header: Annotated[str | None, Depends(key_header)],
    ) -> None:
        given = credentials.credentials if credentials else header or ""
        # headers come as latin-1, whatever their bytes mean
        if not hmac.compare_digest(given.encode("latin-1"), expected):
            raise Refusal(
                401, "the API key is missing or wrong: send it as Authorization: Bearer KEY or X-API-Key: KEY"
            )

    return check


def _detected(service: Service, images: Sequence[ImageOut], shown: Sequence[Detections]) -> Detected:
    """As a COCO annotation file: ids count detections from 1."""
    results = [result for image, one in zip(images, shown, strict=True) for result in one.to_coco(image.id)]
    annotations = [
        AnnotationOut(id=place, area=result["bbox"][2] * result["bbox"][3], **result)
        for place, result in enumerate(results, start=1)
    ]
    return Detected(images=list(images), annotations=annotations, categories=service.categories())


def _takes(options: type[Options], most: int, *also: int) -> dict[str, Any]:
    """What a path that takes pictures says of itself: both kinds of body, and what may go wrong."""
    form = _inlined(options.model_json_schema())
    files = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": most,
        "description": "The pictures, as files.",
    }
    form["properties"] = {"files": files, **form.get("properties", {})}
    form["required"] = ["files"]
    content = {
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": _inlined(json_body(options, most).model_json_schema())},
    }
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
        "responses": _problems(400, 401, 408, 413, 415, 422, 429, 503, *also),
    }


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema without references."""
    definitions = schema.pop("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return resolve(definitions[value["$ref"].rpartition("/")[2]])
        return {key: resolve(item) for key, item in value.items()}

    return resolve(schema)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": REASONS[status]} for status in sorted(statuses)}


def _add_errors(app: FastAPI) -> None:
    """Every error is JSON with one line that says what is wrong."""

    def problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": " ".join(message.split())}, status, headers=dict(headers or {}))

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return problem(error.status, error.message, error.headers)

    @app.exception_handler(HTTPException)
    async def not_here(request: Request, error: HTTPException) -> JSONResponse:
        message = {
            404: f"there is nothing at {request.url.path}; see /docs",
            405: f"{request.method} is not answered here",
        }
        return problem(error.status_code, message.get(error.status_code, str(error.detail)), error.headers)

    @app.exception_handler(Exception)
    async def our_fault(request: Request, _: Exception) -> JSONResponse:
        # Outside of what adds headers, so that the request's name goes into the text.
        return problem(500, f"a fault of the service; its log tells more under request {request.state.request_id}")
