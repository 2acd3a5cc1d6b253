"""A detector in service: what every request is answered from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from fastapi import Request
from PIL import Image
from pydantic import BaseModel, ValidationError, create_model
from pydantic import Field as SchemaField
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from detrove.inference import Detector
from detrove.inference.detector import DEFAULT_THRESHOLD
from detrove.serving.explain import anatomy
from detrove.serving.limits import Limits
from detrove.serving.metrics import Metrics
from detrove.serving.refusals import Refusal
from detrove.serving.schemas import CategoryOut, EncodedPicture, LimitsOut, ModelOut, Options
from detrove.serving.uploads import Upload, from_base64, inspect
from detrove.serving.worker import Job, Worker
from detrove.structures import Detections

FIELDS = 8
"""Of a form, beside its files."""

DISCONNECTED = 499
"""The status under which a request is logged whose client did not wait; nobody receives it."""

Asked = TypeVar("Asked", bound=Options)


@dataclass(frozen=True)
class Seen:
    """What was found in a picture of this size in pixels, upright."""

    width: int
    height: int
    detections: Detections


class Service:
    """A detector, the thread that computes with it, its limits and its counters."""

    def __init__(self, detector: Detector, limits: Limits) -> None:
        self.detector, self.limits = detector, limits
        detector.model.eval()
        self.metrics = Metrics()
        self.worker = Worker(limits, self.metrics.observe_batch)
        self.arriving = 0
        self.metrics.watch("detrove_waiting_pictures", "Pictures in the queue", lambda: self.worker.num_waiting)
        self.metrics.watch("detrove_arriving_requests", "Requests being received", lambda: self.arriving)

    async def receive(self, request: Request, asked: type[Asked], most: int) -> tuple[list[Upload], Asked]:
        """The pictures of a request, at most so many, looked at but not decoded, and what it asks for.

        Raises a `Refusal` as early as can be: where there is no room, nothing is read.
        """
        self.worker.refuse_if_full()
        if self.arriving >= self.limits.requests:
            raise Refusal(429, f"busy: {self.arriving} requests are arriving already", max(1.0, self.worker.wait))
        self.arriving += 1
        try:
            return await self._read(request, asked, most)
        except ClientDisconnect:
            raise Refusal(DISCONNECTED, "the client left before all had arrived") from None
        finally:
            self.arriving -= 1

    async def _read(self, request: Request, asked: type[Asked], most: int) -> tuple[list[Upload], Asked]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            named, fields = await _read_form(request, most)
            options = _validated(asked, fields)
        elif kind == "application/json":
            body = _validated(json_body(asked, most), await _read_json(request))
            options = asked(**{name: getattr(body, name) for name in asked.model_fields})
            named = await run_in_threadpool(_decode_all, body.images)
        else:
            raise Refusal(415, "send multipart/form-data with a field `files`, or application/json with `images`")
        inspected = [(name or f"picture {place}", data) for place, (name, data) in enumerate(named, start=1)]
        return await run_in_threadpool(_inspect_all, inspected, self.limits.megapixels), options

    async def detect(self, request: Request, uploads: Sequence[Upload]) -> list[Seen]:
        """All detections of each picture, whatever their score."""
        jobs = [Job(upload, self._detect, self._together(upload)) for upload in uploads]
        return await self._answers(request, jobs)

    async def ask(self, request: Request, upload: Upload, question: Callable[[Detector, Image.Image], Any]) -> Any:
        """The answer of a function of the detector and one picture, computed when its turn has come."""
        compute = partial(_for_each, partial(question, self.detector))
        return (await self._answers(request, [Job(upload, compute)]))[0]

    def shown(self, detections: Detections, threshold: float | None, top_k: int | None) -> Detections:
        """Those of named classes that reach the threshold, by None the stored or usual one; the surest `top_k`."""
        stored = self.detector.thresholds
        named = torch.tensor([entry is not None for entry in detections.label_map.entries])
        detections = detections.select(named[detections.labels.cpu()].to(detections.labels.device))
        if threshold is None:
            kept = detections.above(DEFAULT_THRESHOLD if stored is None else stored)
        else:
            kept = detections.above(threshold)
        return kept if top_k is None else kept.select(kept.scores.argsort(descending=True, stable=True)[:top_k])

    def categories(self) -> list[CategoryOut]:
        """The classes that the detector knows."""
        return [CategoryOut(id=entry.id, name=entry.name) for entry in self.detector.label_map.entries if entry]

    def describe(self) -> ModelOut:
        """What is served, and what a request may hold."""
        detector, blocks = self.detector, anatomy(self.detector.model)
        stored = [] if detector.thresholds is None else detector.thresholds.tolist()
        return ModelOut(
            name=detector.name or type(detector.model).__name__,
            detrove_version=version("detrove"),
            categories=self.categories(),
            thresholds={
                entry.id: round(value, 4)
                for entry, value in zip(detector.label_map.entries, stored, strict=False)
                if entry
            },
            longer_side=detector.preprocessing.longer,
            tiles=detector.tiling.size if detector.tiling else None,
            engine=f"{detector.engine.name}, {detector.engine.precision}" if detector.engine else None,
            decoder=blocks.decoder,
            encoder=blocks.encoder,
            limits=LimitsOut(
                megabytes=self.limits.megabytes,
                megapixels=self.limits.megapixels,
                pictures=self.limits.pictures,
                seconds=self.limits.seconds,
            ),
        )

    def _detect(self, pictures: list[Image.Image]) -> list[Seen]:
        found = self.detector.detect(pictures)
        return [Seen(*picture.size, detections) for picture, detections in zip(pictures, found, strict=True)]

    def _together(self, upload: Upload) -> tuple[int, int] | None:
        """Pictures of one size share a batch, so that no answer depends, by padding, on who else asks."""
        tiling = self.detector.tiling
        if tiling is not None and len(tiling.tiles(upload.width, upload.height)) > 1:
            return None
        return self.detector.preprocessing.target_size(upload.height, upload.width)

    async def _answers(self, request: Request, jobs: Sequence[Job]) -> list[Any]:
        """What the worker makes of the jobs; given up where it takes too long or the client leaves."""
        self.worker.submit(jobs)
        answers = asyncio.gather(*(asyncio.wrap_future(job.answer) for job in jobs))
        answers.add_done_callback(_forget)
        gone = asyncio.ensure_future(_until_gone(request.receive))
        try:
            await asyncio.wait({answers, gone}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if answers.done():
                return answers.result()
            if gone.done():
                raise Refusal(DISCONNECTED, "the client has left")
            raise Refusal(503, f"no answer within {self.limits.seconds:g} s", self.worker.wait)
        finally:
            gone.cancel()
            for job in jobs:
                job.answer.cancel()  # takes back those that nobody has begun


@lru_cache
def json_body(asked: type[Options], most: int) -> type[Any]:
    """The model of a JSON request: the options and the pictures."""
    images = (list[EncodedPicture], SchemaField(min_length=1, max_length=most, description="The pictures."))
    return create_model(f"{asked.__name__}WithImages", __base__=asked, images=images)


def one_line(error: ValidationError) -> str:
    """The first thing that is wrong with a request, and where."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"] if part != "function-before")
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _validated(model: type[Any], values: Any) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise Refusal(422, one_line(error)) from None


async def _read_form(request: Request, most: int) -> tuple[list[tuple[str, bytes]], dict[str, str]]:
    """Names and bytes of the files, and the other fields."""
    try:
        async with request.form(max_files=most, max_fields=FIELDS) as form:
            files, fields = [], {}
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name != "files":
                        raise Refusal(422, f"{name}: unknown; pictures go into the field `files`")
                    files.append((value.filename or "", await value.read()))
                elif name in fields:
                    raise Refusal(422, f"{name}: given twice")
                else:
                    fields[name] = value
    except HTTPException as error:
        raise Refusal(400, f"the form cannot be read ({error.detail}); at most {most} files in it") from None
    if "files" in fields:
        raise Refusal(422, "files: a picture must be sent as a file, with a file name")
    if not files:
        raise Refusal(422, "files: no picture in this request")
    return files, fields


async def _read_json(request: Request) -> Any:
    body = await request.body()
    try:
        return await run_in_threadpool(json.loads, body)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is not JSON") from None


def _decode_all(images: Sequence[EncodedPicture]) -> list[tuple[str, bytes]]:
    return [
        (image.name, from_base64(image.name or f"picture {place}", image.data))
        for place, image in enumerate(images, start=1)
    ]


def _inspect_all(named: Sequence[tuple[str, bytes]], megapixels: float) -> list[Upload]:
    return [inspect(name, data, megapixels) for name, data in named]


def _for_each(question: Callable[[Image.Image], BaseModel], pictures: list[Image.Image]) -> list[BaseModel]:
    return [question(picture) for picture in pictures]


async def _until_gone(receive: Callable[[], Awaitable[Any]]) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _forget(future: asyncio.Future[Any]) -> None:
    """Look at an answer that perhaps nobody waits for any more, so that its error is not reported as overlooked."""
    if not future.cancelled():
        future.exception()
