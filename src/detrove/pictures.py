"""Reading a picture file into upright 8-bit RGB, whatever the file holds."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from detrove.errors import InputError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})

SIDEWAYS = frozenset({5, 6, 7, 8})
"""The EXIF orientations that exchange width and height."""

TOO_LARGE = f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, the most that is opened at once"
"""What to say of a picture that Pillow refuses."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture of each EXIF orientation upright."""

REDUCTION_MARGIN = 2.0
"""A JPEG is decoded at a fraction of its size only where that leaves this many times the pixels a side that are needed.

A reduced decode averages blocks, a resize by a triangle filter overlapping neighbourhoods. Measured against decoding in
full and resizing, bilinear, on three sets of real pictures: with a margin of 2 the mean difference of a set is 0.2 to
0.6 of 255; with a margin of 1 single pictures of fine texture differ by 9.
"""


def read_picture(path: str | Path) -> Image.Image:
    """The picture in a file as upright RGB (see `to_rgb`).

    Raises `InputError`, naming the file, where it is missing, no picture, or truncated.
    """
    with _loaded(Path(path)) as picture:
        return to_rgb(picture)


def _loaded(path: Path) -> Image.Image:
    """The file's picture, decoded."""
    try:
        picture = Image.open(path)
        try:
            picture.load()
        except BaseException:
            picture.close()
            raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such picture") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, not a picture") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a picture that can be read; remove it or save it again as JPEG or PNG") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path}: {TOO_LARGE}; cut it into parts first") from None
    except Exception as error:  # a damaged file may raise anything in a decoder
        raise InputError(f"{path}: cannot be decoded ({error}); remove it or save it again") from None
    return picture


def orientation_of(picture: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1, upright, where it says none, or its EXIF cannot be read."""
    try:
        orientation = int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # tags of a wrong type or length, as cameras and tools write them, raise anything
        return 1
    return orientation if orientation in _UPRIGHT else 1


def upright(picture: Image.Image) -> Image.Image:
    """A copy of the picture as it is to be seen, which says nothing of an orientation any more."""
    orientation = orientation_of(picture)
    if orientation == 1:
        return picture.copy()
    turned = picture.transpose(_UPRIGHT[orientation])
    turned.info = {key: value for key, value in picture.info.items() if key == "transparency"}
    return turned


def read_jpeg(path: str | Path, size: tuple[int, int], scale: float = 1.0) -> Tensor | None:
    """An ordinary JPEG of this `size` (width, height) as RGB, (3, H, W) uint8 with the channels last in memory.

    In full it equals `read_picture` to the bit, in about two thirds of its time (by torchvision's decoder). Where a
    picture of `scale` times its size is all that is needed, it may come at 1/2, 1/4 or 1/8 of it (see
    `REDUCTION_MARGIN`), sides rounded up.

    None for any other file: another format, a sideways or CMYK picture, one of another size, a damaged or missing one.
    What that is, `read_picture` finds out.
    """
    try:
        data = Path(path).read_bytes()
        with Image.open(BytesIO(data)) as picture:
            ordinary = picture.format == "JPEG" and picture.mode in ("RGB", "L") and picture.size == size
            if not ordinary or orientation_of(picture) != 1:
                return None
            reduction = _reduction(scale)
            if reduction > 1:
                picture.draft(picture.mode, (picture.width // reduction, picture.height // reduction))
                return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        return _decode_whole_jpeg(data)
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError):
        return None


def _reduction(scale: float) -> int:
    """The largest of the fractions 1/8, 1/4, 1/2 that libjpeg decodes at, and 1, that leaves the margin."""
    return next((factor for factor in (8, 4, 2) if factor * scale * REDUCTION_MARGIN <= 1), 1)


def _decode_whole_jpeg(data: bytes) -> Tensor | None:
    # Imported here: it takes a second, and only training comes this way. Since 0.29 torchvision announces that a later
    # one will drop its decoders; without them it is Pillow's turn.
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        return None

    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    assert isinstance(pixels, Tensor)
    return pixels


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any PIL picture as upright 8-bit RGB.

    EXIF orientation is applied; transparency is laid over white; CMYK and palettes are converted. Grey of more than
    8 bits is scaled, where a plain conversion would clip it: integers by 65535, whatever their brightest value;
    floating-point numbers, whose type names no range, by the first of 1, 255 and 65535 that none exceeds.
    """
    picture = upright(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(picture))).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    if np.issubdtype(values.dtype, np.floating):
        highest = values.max(initial=0.0, where=np.isfinite(values))
        full_range = next((limit for limit in (1.0, 255.0) if highest <= limit), 65535.0)
        values = np.nan_to_num(values, nan=0.0, posinf=full_range, neginf=0.0)
        return np.clip(np.round(values.astype(np.float64) / full_range * 255), 0, 255).astype(np.uint8)
    whole = np.clip(values, 0, 65535).astype(np.uint32)
    return ((whole + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257; no value lies between two
