"""Inputs as they come in JSON: texts, mappings of columns, and images in base64."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from talos_ray.data.pixels import decoding
from talos_ray.errors import SpecError
from talos_ray.serving.record import Refused

MOST = 1024  # inputs of one request: others wait meanwhile
DATA_URI = re.compile(r"data:[\w.+/-]*;base64,")


@contextmanager
def reading() -> Iterator[None]:
    """What is wrong with an input within the block refuses the request: 422."""
    try:
        yield
    except SpecError as error:
        raise Refused(422, str(error)) from None


def decoded(kind: str, inputs: Any) -> list[Any]:
    """The inputs of a request for a task of this kind ("text" or "image"), as `load_inputs` takes them. A text is never
    taken for the path of a file.

    Raises:
        SpecError: names an input by its place.
    """
    if not isinstance(inputs, list) or not 1 <= len(inputs) <= MOST:
        given = f"{len(inputs)}" if isinstance(inputs, list) else f"{type(inputs).__name__}"
        raise SpecError(f"inputs: {given}; wanted a list of 1 to {MOST}; send several requests")
    return [_picture(place, words) for place, words in enumerate(inputs)] if kind == "image" else inputs


def _picture(place: int, words: Any) -> Image.Image:
    """An image file in base64, read as the files of a data set are."""
    import datasets

    # As `bytes` and never as `path`: a request must not read this machine's files.
    if not isinstance(words, str):
        raise SpecError(f"input {place} is {type(words).__name__}; wanted an image file in base64")
    try:
        content = base64.b64decode(DATA_URI.sub("", words, count=1), validate=True)
    except binascii.Error as error:
        raise SpecError(f"input {place} is no base64 ({error}); wanted an image file in base64") from None
    try:
        with decoding():
            picture: Image.Image = datasets.Image().decode_example({"bytes": content, "path": None})
            return picture
    except SpecError as error:
        raise SpecError(f"input {place}: {error}") from None
