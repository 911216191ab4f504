"""Pixels of any depth as RGB of 8 bits, by a rule that is written down, or refused by name.

Pillow's own conversion clips: of 16 bits all that is lighter than 255 of 65,535 becomes white. And it drops
transparency, so that what was hidden comes to light.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from talos_ray.errors import SpecError

GROUND = (255, 255, 255)  # what transparent pixels are laid on
MOST = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)  # pixels; Pillow takes more for an attack, and refuses to decode them
DEEP = 65535 / 255  # steps of 16 bits in one of 8
SURE = 256 << 10  # bytes; a JPEG that is smaller cannot hold as many pixels as are refused
HEAD = 33  # bytes of a PNG that say how large and how deep it is, and their checksum
BITS = 258  # tags of a TIFF: bits a value, what zero stands for, kind of number
ZERO_IS = 262
NUMBERS = 339
PNG = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\x60\x82"
JPEG = b"\xff\xd8"
JPEG_END = b"\xff\xd9"


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Whatever a decoder raises within the block becomes a SpecError: of a broken file each raises errors of its own
    kinds."""
    try:
        yield
    except SpecError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SpecError(f"it cannot be decoded ({reason[:200]}); mend or drop it") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """RGB of 8 bits, an image of its own.

    Raises:
        SpecError: values of which nobody can tell how light they are.
    """
    with decoding():  # what was opened and not yet read
        image.load()
    _check_tags(image)
    if image.mode.startswith(("I", "F")):
        return _scaled(image)
    hidden = image.info.get("transparency")
    if isinstance(hidden, tuple) and max(hidden) > 255:  # of 16 bits, where the pixels have kept the upper 8
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in hidden)
    if image.mode == "La":  # which leads to nothing else
        image = image.convert("LA")
    if hidden is not None or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (*GROUND, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def _check_tags(image: Image.Image) -> None:
    """Raises SpecError where a TIFF says of its values what Pillow drops: that white has fewer bits than 16, or is
    zero, or that values have a sign."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return
    bits = tags.get(BITS, (1,))
    deep = image.mode.startswith(("I", "F"))
    if image.mode.startswith("I;16") and set(bits) != {16}:
        raise SpecError(f"its values have {bits[0]} bits; wanted 8 or 16; save it with 16, so that 65535 is white")
    if 2 in tags.get(NUMBERS, ()) and max(bits) < 32:
        raise SpecError(f"its values have {bits[0]} bits with a sign; wanted 8 or 16 without; save it so")
    if deep and tags.get(ZERO_IS) == 0:
        raise SpecError(
            f"it says that zero is white, of values of {bits[0]} bits; wanted zero for black; save it so, inverted"
        )


def _scaled(image: Image.Image) -> Image.Image:
    """16 bits divided by 257; floating-point numbers from 0 to 1 times 255."""
    values = np.asarray(image)
    low = float(values.min())
    high = float(values.max())
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
        if isinstance(hidden := image.info.get("transparency"), int):
            scaled = np.where(values == hidden, GROUND[0], scaled)
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


def trouble_with(start: bytes, end: bytes, size: int, whole: Callable[[], Path | io.BytesIO]) -> str | None:
    """Why an image cannot be read as it is; None if it can. Of PNG, JPEG and WebP, its first HEAD bytes, its last two
    and its size say whether it is whole, so it is cheap to ask; what these leave open is decoded, and so are all other
    formats.

    Args:
        whole: gives what Pillow opens.
    """
    if start.startswith(PNG) and len(start) == HEAD and end == PNG_END:
        width = int.from_bytes(start[16:20], "big")
        height = int.from_bytes(start[20:24], "big")
        checksum = int.from_bytes(start[29:], "big")
        if width and height and zlib.crc32(start[12:29]) == checksum:
            return _too_large(width, height)
    elif start.startswith(JPEG) and end == JPEG_END:
        # Its size in pixels stands anywhere; a small file need not be opened for it.
        return None if size < SURE else _trouble(whole(), decode=False)
    elif start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        wanted = 8 + int.from_bytes(start[4:8], "little")  # bytes, by its own head
        return _trouble(whole(), decode=size < wanted)
    return _trouble(whole(), decode=True)


def head_and_tail(path: Path) -> tuple[bytes, bytes, int]:
    """First HEAD bytes of a file, its last two, and its size; nothing of one that cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(HEAD)
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - 2))
            return start, file.read(), size
    except OSError:
        return b"", b"", 0


def _trouble(source: Path | io.BytesIO, decode: bool) -> str | None:
    """By Pillow: by the header alone where neither `decode` nor the depth asks for the values."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with decoding(), Image.open(source) as image:
            if told := _too_large(*image.size):
                return told
            if decode or image.mode.startswith(("I", "F")):
                as_rgb(image)
    except SpecError as error:
        return str(error)
    finally:
        Image.MAX_IMAGE_PIXELS = before
    return None


def _too_large(width: int, height: int) -> str | None:
    if width * height <= MOST:
        return None
    return f"it has {width} x {height} pixels; wanted at most {MOST / 1e6:.0f} megapixels; make it smaller"
