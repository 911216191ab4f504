"""Pixels of any depth as RGB of 8 bits, by a rule that is written down, or refused by name.

Pillow's own conversion clips: of 16 bits all that is lighter than 255 of 65,535 becomes white. And it drops
transparency, so that what was hidden comes to light.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from talos_ray.errors import SpecError

GROUND = (255, 255, 255)  # what transparent pixels are laid on
MOST = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)  # pixels; Pillow takes more for an attack, and refuses to decode them
DEEP = 65535 / 255  # steps of 16 bits in one of 8
SURE = 256 << 10  # bytes; a JPEG that is smaller cannot hold as many pixels as are refused
HEAD = 33  # bytes of a PNG that say how large and how deep it is
ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"\x60\x82"}  # first and last two bytes of a JPEG and a PNG file


def as_rgb(image: Image.Image) -> Image.Image:
    """RGB of 8 bits, an image of its own.

    Raises:
        SpecError: values of which nobody can tell how light they are.
    """
    if image.mode.startswith(("I", "F")):
        return _scaled(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (*GROUND, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """16 bits divided by 257; floating-point numbers from 0 to 1 times 255."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # also where one is not a number
            raise SpecError(f"its floating-point values go from {low:g} to {high:g}; wanted 0 to 1; scale them")
        scaled = values * 255.0
    else:
        deep = image.mode.startswith("I;16")
        if not deep and (low < 0 or high > 65535 or 0 < high <= 255):
            raise SpecError(
                f"its 32-bit values go from {low:.0f} to {high:.0f}; wanted 16 bits, 0 to 65535; save it with 8 or 16 "
                "bits"
            )
        scaled = values / DEEP
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


def trouble_with(start: bytes, end: bytes, size: int, whole: Callable[[], Path | io.BytesIO]) -> str | None:
    """Why an image cannot be read as it is; None if it can. Only where its first HEAD bytes, its last two and its size
    leave that open is the file opened, so it is cheap to ask.

    Args:
        whole: gives what Pillow opens.
    """
    if ENDS.get(start[:2], end) != end or not start:  # cut off, or bytes behind its end
        return _decoded(whole())
    if start.startswith(b"\x89PNG") and len(start) == HEAD:
        width, height = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
        return _too_large(width, height)
    if start.startswith(b"\xff\xd8") and size < SURE:
        return None
    return _opened(whole())


def head_and_tail(path: Path) -> tuple[bytes, bytes, int]:
    """First HEAD bytes of a file, its last two, and its size."""
    with path.open("rb") as file:
        start = file.read(HEAD)
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 2))
        return start, file.read(), size


def _decoded(source: Path | io.BytesIO) -> str | None:
    try:
        with Image.open(source) as image:
            image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"it cannot be decoded ({error}); mend or drop it"
    return None


def _opened(source: Path | io.BytesIO) -> str | None:
    """By Pillow: formats whose headers are not read here, and depths that only their values explain."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(source) as image:
            if told := _too_large(*image.size):
                return told
            if image.mode.startswith(("I", "F")):
                as_rgb(image)
    except SpecError as error:
        return str(error)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        return f"it cannot be decoded ({error}); mend or drop it"
    finally:
        Image.MAX_IMAGE_PIXELS = before
    return None


def _too_large(width: int, height: int) -> str | None:
    if width * height <= MOST:
        return None
    return f"it has {width} x {height} pixels; wanted at most {MOST / 1e6:.0f} megapixels; make it smaller"
