"""Pictures as they arrive: told by their header what they would cost, decoded only when their turn has come."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from detrove.errors import InputError
from detrove.pictures import SIDEWAYS, orientation_of, to_rgb
from detrove.serving.refusals import Refusal

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is read. Pillow knows others, some of which hand the file to another program."""


@dataclass(frozen=True)
class Upload:
    """A picture's file and the size, upright, that its header tells; nothing is decoded.

    Where a PNG says behind its pixels that it lies sideways, this is found when it is decoded.
    """

    name: str
    data: bytes
    width: int
    height: int

    def decode(self) -> Image.Image:
        """As upright RGB; `InputError` where the file does not hold what its header promised."""
        try:
            picture = Image.open(BytesIO(self.data), formats=FORMATS)
            picture.load()
        except Exception as error:  # a damaged file may raise anything in a decoder
            raise InputError(f"{self.name}: damaged, it cannot be decoded ({error}); save it again") from None
        with picture:
            return to_rgb(picture)


def inspect(name: str, data: bytes, megapixels: float) -> Upload:
    """Look at a picture's header; raise `Refusal` where it is none, or has more pixels than are decoded here."""
    if not data:
        raise Refusal(422, f"{name}: empty; nothing arrived of this picture")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            is_within = width * height <= megapixels * 1e6
            sideways = is_within and _is_sideways(picture)
    except UnidentifiedImageError:
        raise Refusal(422, f"{name}: not a picture; send {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
    except Image.DecompressionBombError:
        raise _too_many_pixels(name, "far more pixels", megapixels) from None
    except Exception as error:  # as above
        raise Refusal(422, f"{name}: a damaged picture ({error}); save it again") from None
    if not is_within:
        raise _too_many_pixels(name, f"{width} x {height} = {width * height / 1e6:.1f} megapixels", megapixels)
    if sideways:
        width, height = height, width
    return Upload(name, data, width, height)


def from_base64(name: str, text: str) -> bytes:
    """The bytes of base64 text, or of a `data:` URL that holds some."""
    _, comma, payload = text.partition(",") if text.startswith("data:") else ("", ",", text)
    try:
        return base64.b64decode(payload if comma else text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(422, f"{name}: its data is not base64") from None


def _is_sideways(picture: Image.Image) -> bool:
    if picture.format == "PNG" and "exif" not in picture.info:
        return False  # Pillow would decode the picture to look for it behind the pixels
    return orientation_of(picture) in SIDEWAYS


def _too_many_pixels(name: str, found: str, megapixels: float) -> Refusal:
    return Refusal(413, f"{name}: {found}; this service takes {megapixels:g}: make it smaller")
