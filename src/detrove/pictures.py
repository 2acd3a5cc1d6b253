"""Reading a picture file into upright 8-bit RGB, whatever the file holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from detrove.errors import InputError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})


def read_picture(path: str | Path) -> Image.Image:
    """The picture in a file as upright RGB (see `to_rgb`).

    Raises `InputError`, naming the file, where it is missing, no picture, or truncated.
    """
    path = Path(path)
    try:
        with Image.open(path) as picture:
            picture.load()
            return to_rgb(picture)
    except FileNotFoundError:
        raise InputError(f"{path}: no such picture") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, not a picture") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a picture that can be read; remove it or save it again as JPEG or PNG") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be decoded ({error}); remove it or save it again") from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any PIL picture as upright 8-bit RGB.

    EXIF orientation is applied; transparency is laid over white; CMYK and palettes are converted. Grey of more than
    8 bits is scaled, where a plain conversion would clip it: integers by 65535, whatever their brightest value;
    floating-point numbers, whose type names no range, by the first of 1, 255 and 65535 that none exceeds.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(picture))).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    full_range = 65535.0
    if np.issubdtype(values.dtype, np.floating):
        highest = values.max(initial=0.0, where=np.isfinite(values))
        full_range = next((limit for limit in (1.0, 255.0) if highest <= limit), full_range)
        values = np.nan_to_num(values, nan=0.0, posinf=full_range, neginf=0.0)
    return np.clip(np.round(values.astype(np.float64) / full_range * 255), 0, 255).astype(np.uint8)
