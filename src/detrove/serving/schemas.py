"""What requests and answers look like; the OpenAPI description is made of these."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Box = Annotated[list[Number], Field(min_length=4, max_length=4, description="x, y, width, height in pixels")]


def _from_text(value: Any) -> Any:
    """A list out of a form's text field, written as JSON."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("must be four numbers in brackets: [x, y, width, height]") from None
    return value


class Problem(BaseModel):
    """Why a request is not answered."""

    error: str


class Options(BaseModel):
    """What goes with the pictures of a request; anything else in it is refused."""

    model_config = ConfigDict(extra="forbid")


class DetectOptions(Options):
    """What to answer of the detections."""

    threshold: Score | None = Field(
        None, description="Least score. Left out: the threshold stored for each class, else 0.5."
    )
    top_k: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="At most so many detections of a picture, the surest ones."
    )


class ExplainOptions(Options):
    """Which detection to explain: the one that this box is; left out, the surest one."""

    bbox: Annotated[Box, BeforeValidator(_from_text)] | None = Field(
        None, description="The box of a detection, [x, y, width, height] in pixels of the picture."
    )
    category_id: int | None = Field(None, description="Its category.", ge=-(2**53), le=2**53)


class AttentionOptions(Options):
    """Which attention layer over the picture's cells to show."""

    layer: Annotated[int, Field(ge=0, le=1000)] = Field(0, description="Counted from 0, in the order they run.")
    head: Annotated[int, Field(ge=0, le=1000)] = Field(0, description="Counted from 0.")
    level: Annotated[int, Field(ge=0, le=16)] = Field(0, description="Of a deformable layer: whose cells look.")


class EncodedPicture(BaseModel):
    """A picture within JSON."""

    model_config = ConfigDict(extra="forbid")

    data: str = Field(description="The file, in base64; a data: URL will do.", min_length=1)
    name: str = Field("", description="What answers and errors call it.", max_length=255)


class ImageOut(BaseModel):
    """A picture that was looked at, upright."""

    id: int
    file_name: str
    width: int
    height: int


class AnnotationOut(BaseModel):
    """A detection, as COCO writes annotations, with its score."""

    id: int
    image_id: int
    category_id: int
    bbox: Box
    area: float
    iscrowd: int = 0
    score: float


class CategoryOut(BaseModel):
    """A class that the detector knows."""

    id: int
    name: str


class Detected(BaseModel):
    """Detections in the form of a COCO annotation file; of each picture the surest first."""

    images: list[ImageOut]
    annotations: list[AnnotationOut]
    categories: list[CategoryOut]


class Maps(BaseModel):
    """Maps over the picture, one for each head.

    `values` is base64 of heads x height x width bytes, row by row; a byte of 255 stands for the head's `peaks`. The map
    `covers` so much of the picture's width and height: 1, or more where its last cells stick out.
    """

    height: int
    width: int
    covers: list[float]
    peaks: list[float]
    values: str


class Samples(BaseModel):
    """Where a deformable layer looks: by head, level and point [x, y, weight], x and y in pixels of the picture."""

    points: list[list[list[list[float]]]]


class LayerOut(BaseModel):
    """What a query does in one decoder layer.

    `anchor` is where it starts from: a box, or a point [x, y]; none where the detector has no anchors. `bbox`, `score`:
    what it answers after the layer. Then what it looks at: `attention`, or `samples` in a deformable layer. Where a
    detector has content and position apart: where it would look by only one of them.
    """

    name: str
    anchor: list[float] | None
    bbox: Box
    score: float
    attention: Maps | None = None
    content: Maps | None = None
    position: Maps | None = None
    samples: Samples | None = None


class Explained(BaseModel):
    """Why a detector answered a box: the query behind it, layer by layer.

    `overlap` is the IoU of the query's box with the one asked for. It is 1 but for rounding where a picture is seen
    whole; less where the box was found in a tile of it, since the whole picture is explained.
    """

    query: int
    num_queries: int
    category_id: int
    category: str
    overlap: float | None
    layers: list[LayerOut]


class Colours(BaseModel):
    """A tensor of attention as a picture: three leading principal components as RGB bytes, its norm as bytes."""

    rgb: str
    norm: str
    largest_norm: float


class AttentionOut(BaseModel):
    """One head of one layer in which the cells of a map look at each other, as pictures of `height` x `width` cells.

    `rows` are the cells whose looks are told (all of them, or a raster of a large map): row * width + column. Of a
    dense layer `attention` holds for each the map of where it looks, `values` being rows x height x width bytes. Of a
    deformable one `samples` holds base64 of little-endian float32: rows x levels x points x (x, y, weight), x and y as
    shares of the picture.
    """

    name: str
    kind: str
    num_levels: int
    height: int
    width: int
    rows: list[int]
    query: Colours | None = None
    key: Colours | None = None
    value: Colours
    attention: Maps | None = None
    samples: str | None = None
    num_points: int = 0


class BlockOut(BaseModel):
    """Attention layers of one kind in a detector."""

    name: str
    kind: str = Field(description="dense or deformable")
    num_heads: int
    content_and_position: bool = Field(description="Whether it keeps content and position apart.")


class LimitsOut(BaseModel):
    """What one request may hold."""

    megabytes: float
    megapixels: float
    pictures: int
    seconds: float


class ModelOut(BaseModel):
    """What is served."""

    name: str
    detrove_version: str
    categories: list[CategoryOut]
    thresholds: dict[int, float] = Field(description="The stored threshold of each category, by its id.")
    longer_side: int = Field(description="Pixels that a picture's longer side has at most, for the detector.")
    tiles: int | None = Field(description="Side of the tiles that large pictures are cut into.")
    engine: str | None
    decoder: list[BlockOut] = Field(description="What /v1/explain tells of; empty where nothing can be explained.")
    encoder: list[BlockOut] = Field(description="What /v1/attention tells of.")
    limits: LimitsOut


class Health(BaseModel):
    """Whether the service can answer."""

    status: str
    waiting: int
