"""`detrove data show`: a contact sheet of what the model really sees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from detrove.errors import InputError

PICTURE_FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def show_data(
    data: Path,
    /,
    *,
    output: Path = Path("sheet.png"),
    split: str | None = None,
    size: int | None = None,
    model: str = "detrove-nano",
    count: int = 12,
    seed: int = 0,
    augment: bool = True,
    settings: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    format: str | None = None,
) -> None:
    """Write a contact sheet: random pictures as training gives them to the model, with their boxes.

    Parameters
    ----------
    data
        A labelled data set.
    output
        The picture to write: .png, .jpg or .webp.
    split
        The part of the data set to show. Default: train, where there is one.
    size
        The longer side, in pixels, that pictures are resized to. Default: the model's own.
    model
        The detector of the catalogue whose recipe and size are shown.
    count
        How many pictures.
    seed
        The same seed gives the same sheet again.
    augment
        --no-augment shows the pictures resized only, without random changes.
    settings
        Override one value of the recipe or of the preprocessing, as for train: KEY=VALUE, for example --set mosaic=1.
    format
        The data set's format, where several fit.
    """
    from detrove.data import Augmentation, find_splits, open_dataset
    from detrove.data.sheet import contact_sheet
    from detrove.models import catalogue
    from detrove.training import TrainingConfig, parse_setting
    from detrove.training.trainer import augmentation_of

    if count < 1:
        raise InputError(f"--count must be at least 1, got {count}")
    if output.suffix.lower() not in PICTURE_FORMATS:
        raise InputError(f"--output {output}: name a picture, {', '.join(PICTURE_FORMATS)}")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    config = TrainingConfig.from_preset(
        catalogue.preset(model),
        settings=dict(parse_setting(text) for text in settings or []),
        size=size,
        batch_size=None,
        data=str(data),
        output="",
        model=model,
    )
    splits = find_splits(data, format)
    dataset = open_dataset(data, split or ("train" if "train" in splits else splits[0]), format)
    augmentation = augmentation_of(config.recipe) if augment else Augmentation()
    sheet = contact_sheet(dataset, config.preprocessing, augmentation, count, seed)
    sheet.save(output)
    print(f"{output}: {min(count, len(dataset))} of {len(dataset):,} pictures of split {dataset.split}")
