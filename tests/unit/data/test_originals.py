from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from makers import write_picture
from PIL import Image

from detrove.data import open_dataset
from detrove.data.cache import PictureCache, parse_bytes
from detrove.data.dataset import Record, read_as_annotated
from detrove.data.originals import DatasetOriginals, decode
from detrove.data.views import Decoded, Original, look, to_pixels
from detrove.errors import InputError
from detrove.structures import Preprocessing, Targets


def record_of(path: Path, width: int, height: int) -> Record:
    none = np.zeros(0)
    return Record(path, 1, width, height, none.reshape(0, 4), none.astype(np.int64), none.astype(bool), none)


def smooth_jpeg(path: Path, width: int, height: int, orientation: int | None = None) -> Path:
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 4, height))
    pixels = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=2) * 100 + 128
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95, exif=exif)
    return path


@pytest.mark.parametrize(
    ("scale", "shape"), [(1.0, (101, 203)), (0.3, (101, 203)), (0.25, (51, 102)), (0.01, (13, 26))]
)
def test_a_jpeg_is_decoded_at_twice_what_is_needed_or_more(tmp_path: Path, scale: float, shape: tuple) -> None:
    decoded = decode(record_of(smooth_jpeg(tmp_path / "a.jpg", 203, 101), 203, 101), scale)
    assert decoded.pixels.shape == (3, *shape)
    assert decoded.scale[0] == decoded.scale[1] >= min(1.0, 2 * scale)


@pytest.mark.parametrize("kind", ["colour", "grey"])
def test_in_full_it_is_what_pillow_reads(tmp_path: Path, kind: str) -> None:
    path = write_picture(tmp_path / "a.jpg", 61, 47)
    if kind == "grey":
        Image.open(path).convert("L").save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(decode(record_of(path, 61, 47), 1.0).pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(("size", "orientation"), [((40, 30), 6), ((30, 40), 6), ((40, 30), 1)])
def test_sideways_pictures_are_read_as_annotated(tmp_path: Path, size: tuple[int, int], orientation: int) -> None:
    record = record_of(smooth_jpeg(tmp_path / "a.jpg", 40, 30, orientation), *size)
    expected = np.asarray(read_as_annotated(record))
    np.testing.assert_array_equal(decode(record, 1.0).pixels.permute(1, 2, 0).numpy(), expected)
    if orientation != 1:
        assert decode(record, 0.1).pixels.shape[1:] == expected.shape[:2]


@pytest.mark.parametrize("damage", ["truncated", "text", "missing", "other size"])
def test_what_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    path = smooth_jpeg(tmp_path / "a.jpg", 64, 48)
    size = (65, 48) if damage == "other size" else (64, 48)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-300])
    elif damage == "text":
        path.write_text("no picture")
    elif damage == "missing":
        path.unlink()
    for scale in (1.0, 0.1):
        with pytest.raises(InputError, match=r"a\.jpg: ") as caught:
            decode(record_of(path, *size), scale)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("resize_filter", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("window", [(0, 0, 203, 101), (13, 21, 150, 92)])
def test_a_view_is_a_crop_and_a_resize(tmp_path: Path, resize_filter: str, window: tuple) -> None:
    """Against Pillow; also where the picture is there at half of its size only."""
    picture = Image.open(smooth_jpeg(tmp_path / "a.jpg", 203, 101)).convert("RGB")
    whole = to_pixels(picture)
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    size = (37, 61)
    plain = Preprocessing(resize_filter=resize_filter)
    expected = np.asarray(picture.crop(window).resize(size[::-1], getattr(Image.Resampling, resize_filter.upper())))
    original = Original(picture.size, nothing, lambda _: Decoded(whole))
    seen, _ = look(original, window, size, plain.resize_filter)
    assert np.abs(seen.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1
    record = record_of(tmp_path / "a.jpg", 203, 101)
    half = Original(picture.size, nothing, lambda _: decode(record, 0.2))
    assert half.read(0.2).pixels.shape == (3, 51, 102)
    seen, _ = look(half, window, size, plain.resize_filter)
    # A smooth picture: an offset of a quarter of a pixel would show as more than this.
    assert np.abs(seen.permute(1, 2, 0).numpy().astype(int) - expected).mean() <= (
        1.0 if resize_filter != "nearest" else 4
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco-mini", "bccd", "deeppcb-mini"])
def test_reduced_decoding_stays_true_on_real_pictures(shared: Path, name: str) -> None:
    """Mean difference to decoding in full and resizing, at the largest size at which each picture is reduced."""
    dataset = open_dataset(shared / "data" / name, "train")
    differences = []
    for original, index in ((DatasetOriginals(dataset)[index], index) for index in range(0, len(dataset), 4)):
        preprocessing = Preprocessing(longer=max(original.size) // 4)
        size = preprocessing.target_size(original.size[1], original.size[0])
        seen, _ = look(original, original.whole, size, "bilinear")
        assert original.read(max(size) / max(original.size)).scale[0] < 1
        expected = np.asarray(preprocessing.resize(dataset[index].image)).astype(int)
        differences.append(np.abs(seen.permute(1, 2, 0).numpy() - expected).mean())
    assert np.mean(differences) <= 0.7
    assert np.quantile(differences, 0.98) <= 2


def test_sizes_as_people_write_them() -> None:
    assert [parse_bytes(text) for text in ("2GB", "2 GiB", "512m", "1000")] == [2 * 10**9] * 2 + [512 * 10**6, 1000]
    for text in ("", "much", "0GB", "-1GB", "2XB"):
        with pytest.raises(InputError, match="cache must be a size above 0"):
            parse_bytes(text)


def test_a_cache_keeps_to_its_budget_and_says_so(shared: Path) -> None:
    dataset = open_dataset(shared / "data" / "bccd", "train")
    cache = PictureCache(dataset, 10**6, np.full(len(dataset), 0.25))
    assert cache.num_kept == (10**6 - len(dataset)) // (160 * 120 * 3)
    assert cache.file.stat().st_size <= 10**6
    assert f"keeps {cache.num_kept} of {len(dataset)} pictures decoded, at up to 160x120 pixels, in 1 of 1 MB" in (
        cache.describe()
    )
    path = cache.file
    del cache
    assert not path.exists()


def test_no_room_for_a_cache(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    dataset = open_dataset(shared / "data" / "bccd", "train")
    with pytest.raises(InputError, match=r"no room for a cache of .* MB \(No space left on device\)"):
        PictureCache(dataset, 10**6, np.full(len(dataset), 0.25))
