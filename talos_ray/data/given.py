"""Inputs that somebody hands over to be answered, without a spec around them: a list of texts, of image files, or of
images in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import ExifTags, Image, ImageOps

from talos_ray.config import HALF, shortly
from talos_ray.data.folders import images_below
from talos_ray.data.pixels import as_rgb, decoding
from talos_ray.data.split import Split, rows_of
from talos_ray.data.tables import KINDS
from talos_ray.errors import SpecError

IMAGE_COLUMN = "image"
NO_LABEL = -1  # place among the classes of an input that has none


def unlabelled(n: int) -> torch.Tensor:
    """int64 [n]."""
    return torch.full((n,), NO_LABEL, dtype=torch.int64)


# ---------------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class _Pictures:
    """Rows of a split that are in memory: `datasets` would encode each, or read again the file that it came from."""

    images: Sequence[Image.Image]

    def __getitem__(self, index: Sequence[int]) -> dict[str, list[Image.Image]]:
        return {IMAGE_COLUMN: [self.images[i] for i in index]}


@dataclass(frozen=True, eq=False)
class Pictures(Split):
    """Images in memory as a split."""

    def words(self, i: int) -> str:
        return f"input {i}"


def pictures(values: Sequence[Any]) -> Pictures:
    """PIL images, or arrays uint8 [h, w], [h, w, 3] or [h, w, 4] (or what else `Image.fromarray` takes), as a split.

    Raises:
        SpecError: one that is no image, or of which nobody can tell how light it is; named by its place.
    """
    images = [_picture(i, value) for i, value in enumerate(values)]
    return Pictures(_Pictures(images), IMAGE_COLUMN, unlabelled(len(images)))


def _picture(place: int, value: Any) -> Image.Image:
    try:
        image = Image.fromarray(value) if isinstance(value, np.ndarray) else value
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"input {place} is an array {value.dtype} {list(value.shape)}, which is no image ({error}); "
            "wanted uint8 [h, w, 3] or [h, w]; convert it"
        ) from None
    if not isinstance(image, Image.Image):
        raise SpecError(
            f"input {place} is {type(value).__name__}; wanted a PIL image or an array, as the others, or a list of "
            "files alone; convert it"
        )
    if not image.width or not image.height:
        raise SpecError(f"input {place} has {image.width} x {image.height} pixels; wanted at least 1; take it out")
    try:
        if image.mode.startswith(("I", "F")):  # deep ones are scaled by a rule that refuses some
            as_rgb(image)
        with decoding():
            return _turned(image)
    except SpecError as error:
        raise SpecError(f"input {place}: {error}") from None


def _turned(image: Image.Image) -> Image.Image:
    """An image as EXIF says that it is to be looked at, as the files of a data set are turned."""
    return ImageOps.exif_transpose(image) if ExifTags.Base.Orientation in image.getexif() else image


def image_files(values: Sequence[str | Path]) -> list[str]:
    """Paths as they were given; of a folder, all images in it and below, in the order of their paths.

    Raises:
        SpecError: one does not exist, or is a table.
    """
    files: list[str] = []
    for i, value in enumerate(values):
        # `Path` would take an empty name for the working folder.
        if not str(value).strip():
            raise SpecError(f"input {i} is empty; wanted an image file or a folder; take it out")
        path = Path(os.path.expanduser(value))
        if os.path.isdir(path):
            files += map(str, images_below(path))
        elif not os.path.isfile(path):  # where `Path` would raise of a name that is too long
            shown = repr(str(value)[:200])
            raise SpecError(f"input {shown} does not exist; wanted an image file or a folder; check the path")
        elif path.suffix.lower() in KINDS:
            raise SpecError(f"input {str(value)!r} is a table among others; wanted one table alone, or image files")
        else:
            files.append(str(path))
    return files


# ------------------------------------------------------------------------------------------------ rows


def rows_of_images(files: Sequence[str], column: str = IMAGE_COLUMN) -> Any:
    """A `datasets.Dataset` of image files, decoded when they are asked for."""
    import datasets

    features = datasets.Features({column: datasets.Image()})
    return datasets.Dataset.from_dict({column: list(files)}, features=features)


def rows_of_texts(values: Sequence[Any], column: str) -> Any:
    """A `datasets.Dataset` of texts.

    Raises:
        SpecError: one is no text; named by its place.
    """

    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise SpecError(f"input {i} is {type(value).__name__}; wanted a text; a file of texts is named alone")
        _check_whole(i, value)
    return rows_of(pa.table({column: pa.array(values, pa.string())}))


def _check_whole(place: int, value: object) -> None:
    """Raises SpecError for a text that holds half a character, as names of files and arguments in another encoding
    do."""
    if isinstance(value, str) and HALF.search(value):
        raise SpecError(
            f"input {place}, {shortly(value)}, holds half a character (a surrogate); wanted a text; correct it"
        )


def rows_of_columns(values: Sequence[Any], columns: Sequence[str]) -> Any:
    """A `datasets.Dataset` of mappings from columns to values, which a template makes inputs of.

    Raises:
        SpecError: one is no mapping or lacks a column; named by its place.
    """

    for i, value in enumerate(values):
        lacks = [column for column in columns if not isinstance(value, Mapping) or value.get(column) is None]
        if lacks:
            raise SpecError(
                f"input {i} has no value for {lacks[0]!r}; wanted a mapping with {', '.join(map(repr, columns))}, "
                "because the task's inputs are made of several columns"
            )
        for column in columns:
            _check_whole(i, value[column])
    try:
        arrays = {}
        for column in columns:
            arrays[column] = pa.array([value[column] for value in values])
        return rows_of(pa.table(arrays))
    except (pa.ArrowException, TypeError) as error:
        raise SpecError(f"the inputs' values differ in kind: {error}; write all of a column alike") from None
