"""Pictures of every kind that cameras, microscopes and scanners write, each made here."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrove.errors import InputError
from detrove.pictures import read_picture, to_rgb


def corners(height: int = 24, width: int = 32) -> np.ndarray:
    """Four quarters in four colours, so that every flip and turn can be told: red, green / blue, white."""
    array = np.zeros((height, width, 3), dtype=np.uint8)
    array[: height // 2, : width // 2] = (255, 0, 0)
    array[: height // 2, width // 2 :] = (0, 255, 0)
    array[height // 2 :, : width // 2] = (0, 0, 255)
    array[height // 2 :, width // 2 :] = (255, 255, 255)
    return array


# How a camera that writes each orientation has stored an upright picture (EXIF 2.32, tag 0x0112).
STORED = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](corners())))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    stored.save(path, exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))

    picture = read_picture(path)

    assert picture.size == (32, 24)
    assert 0x0112 not in picture.getexif() or picture.getexif()[0x0112] == 1
    np.testing.assert_allclose(np.asarray(picture).astype(int), corners(), atol=12)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    Image.fromarray(grey).save(tmp_path / "grey.png")
    array = np.asarray(read_picture(tmp_path / "grey.png"))
    np.testing.assert_array_equal(array, np.repeat(grey[..., None], 3, axis=2))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = np.eye(8, dtype=bool)
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / "bits.png"))[..., 0], bits * 255)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((2, 3, 4), dtype=np.uint8)
    rgba[..., 0] = 200
    rgba[0, 0, 3], rgba[0, 1, 3], rgba[0, 2, 3] = 0, 51, 255
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    array = np.asarray(read_picture(tmp_path / "rgba.png")).astype(int)
    assert array[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_allclose(array[0, 1], [244, 204, 204], atol=1)
    assert array[0, 2].tolist() == [200, 0, 0]


def test_grey_with_alpha(tmp_path: Path) -> None:
    la = np.array([[[10, 255], [10, 0]]], dtype=np.uint8)
    Image.fromarray(la, mode="LA").save(tmp_path / "la.png")
    assert np.asarray(read_picture(tmp_path / "la.png"))[0].tolist() == [[10, 10, 10], [255, 255, 255]]


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palette_with_a_transparent_colour(tmp_path: Path, suffix: str) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([250, 0, 0, 0, 250, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / f"p.{suffix}", transparency=1)
    array = np.asarray(read_picture(tmp_path / f"p.{suffix}"))
    assert array[0].tolist() == [[250, 0, 0], [255, 255, 255]]


def test_rgb_png_with_a_transparent_colour(tmp_path: Path) -> None:
    picture = Image.new("RGB", (2, 1), (250, 0, 0))
    picture.putpixel((1, 0), (0, 250, 0))
    picture.save(tmp_path / "t.png", transparency=(0, 250, 0))
    assert np.asarray(read_picture(tmp_path / "t.png"))[0].tolist() == [[250, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_range(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    array = np.asarray(read_picture(tmp_path / f"deep.{suffix}"))
    np.testing.assert_array_equal(array[..., 0], np.round(values / 257).astype(np.uint8))
    assert (array[..., 0] == array[..., 2]).all()


def test_a_dark_16_bit_picture_is_scaled_like_a_bright_one(tmp_path: Path) -> None:
    """A picture's scale must follow from its type, not from its brightest pixel."""
    values = np.array([[0, 200], [100, 250]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "dark.png")
    assert np.asarray(read_picture(tmp_path / "dark.png")).max() == 1


@pytest.mark.parametrize(("full_range", "atol"), [(1.0, 1), (255.0, 1), (65535.0, 1)])
def test_floating_point_tiff(tmp_path: Path, full_range: float, atol: int) -> None:
    values = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    Image.fromarray(values * np.float32(full_range)).save(tmp_path / "float.tif")
    array = np.asarray(read_picture(tmp_path / "float.tif"))
    np.testing.assert_allclose(array[..., 1].astype(int), values * 255, atol=atol)


def test_floats_that_are_no_numbers_become_black_or_white() -> None:
    values = np.array([[np.nan, 0.5], [np.inf, 1.0]], dtype=np.float32)
    array = np.asarray(to_rgb(Image.fromarray(values)))
    assert array[..., 0].tolist() == [[0, 128], [255, 255]]


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    Image.fromarray(corners()).convert("CMYK").save(tmp_path / "print.jpg", quality=100, subsampling=0)
    picture = read_picture(tmp_path / "print.jpg")
    assert picture.mode == "RGB"
    np.testing.assert_allclose(np.asarray(picture).astype(int), corners(), atol=12)


def test_an_adobe_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    """Photoshop stores CMYK inverted and says so in an APP14 marker, which is what PIL itself writes for CMYK."""
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "white.jpg", quality=100)
    assert b"Adobe" in (tmp_path / "white.jpg").read_bytes()
    assert np.asarray(read_picture(tmp_path / "white.jpg")).min() > 250


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(read_picture(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


def test_a_truncated_jpeg_is_the_users_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    assert_one_line_naming(path)


def test_a_truncated_png(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    assert_one_line_naming(path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    assert_one_line_naming(tmp_path / "empty.jpg")


def test_text_that_is_called_a_picture(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("not a picture\n" * 20)
    assert_one_line_naming(tmp_path / "notes.jpg")


def test_a_missing_picture(tmp_path: Path) -> None:
    assert_one_line_naming(tmp_path / "nowhere.jpg")


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    assert_one_line_naming(tmp_path)


def test_a_picture_too_large_to_be_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("L", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert_one_line_naming(path)


def assert_one_line_naming(path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_picture(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<HHI4s", 256, 2, 4, b"64\0\0"),  # the width, as text
        struct.pack("<HHII", 282, 5, 1, 0),  # a resolution of which nothing stands where it should
    ],
)
def test_a_turned_picture_with_broken_exif_is_upright(tmp_path: Path, entry: bytes) -> None:
    """As cameras and tools write it. Pillow's own turning writes EXIF anew, and fails."""
    orientation = struct.pack("<HHIHH", 274, 3, 1, 6, 0)
    first, second = sorted((entry, orientation), key=lambda each: each[:2])
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + first + second + struct.pack("<I", 0)
    stored = Image.fromarray(np.ascontiguousarray(STORED[6](corners())))
    stored.save(tmp_path / "odd.jpg", exif=exif, quality=100, subsampling=0)
    picture = read_picture(tmp_path / "odd.jpg")
    np.testing.assert_allclose(np.asarray(picture).astype(int), corners(), atol=12)
    np.testing.assert_array_equal(np.asarray(to_rgb(picture)), np.asarray(picture))  # not turned again


def test_every_value_of_16_bits_is_rounded_to_the_nearest() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(values.astype(np.float64) / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(values)))[..., 0], expected)
    beyond = Image.fromarray(np.array([[-5, 70_000]], dtype=np.int32))
    np.testing.assert_array_equal(np.asarray(to_rgb(beyond))[..., 0], [[0, 255]])


def test_any_fault_of_a_decoder_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def fails(*_: object) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fails)
    with pytest.raises(InputError, match=r"a\.png: cannot be decoded \(unpack requires"):
        read_picture(tmp_path / "a.png")


def test_a_picture_too_large_to_be_opened_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (80, 60)).save(tmp_path / "slide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"slide\.png: more than [\d,]+ pixels.*cut it into parts first"):
        read_picture(tmp_path / "slide.png")
