"""Inputs made worse, the same way each time: does an edit make a model more fragile? (After Hendrycks & Dietterich,
2019.)

One moderate severity each. What is random is drawn from a seed and the input itself, so an input is always spoilt
alike.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from talos_ray.config import CHOICE
from talos_ray.data.pixels import as_rgb

NOISE = 0.12  # standard deviation of the noise, of the whole range of a pixel
BLUR = 0.03  # radius of the blur, of the shorter side
CONTRAST = 0.4  # of the contrast that is left
OCCLUDED = 0.4  # side of the grey square, of the shorter side
WORDS = 0.2  # share of words that are misspelt, or left out


def _noise(image: Image.Image, draw: random.Random) -> Image.Image:
    pixels = np.asarray(as_rgb(image), dtype=np.float32)
    noise = np.random.default_rng(draw.getrandbits(63)).normal(0, 255 * NOISE, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def _blur(image: Image.Image, draw: random.Random) -> Image.Image:
    return as_rgb(image).filter(ImageFilter.GaussianBlur(BLUR * min(image.size)))


def _contrast(image: Image.Image, draw: random.Random) -> Image.Image:
    return ImageEnhance.Contrast(as_rgb(image)).enhance(CONTRAST)


def _occlusion(image: Image.Image, draw: random.Random) -> Image.Image:
    image, side = as_rgb(image), max(1, round(OCCLUDED * min(image.size)))
    corner = draw.randint(0, image.width - side), draw.randint(0, image.height - side)
    image.paste((128, 128, 128), (*corner, corner[0] + side, corner[1] + side))
    return image


def _typos(text: str, draw: random.Random) -> str:
    """Two neighbouring letters of a word change places."""

    def spoil(word: str) -> str:
        if len(word) < 3 or draw.random() >= WORDS:
            return word
        i = draw.randrange(len(word) - 1)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]

    return " ".join(spoil(w) for w in text.split())


def _case(text: str, draw: random.Random) -> str:
    return text.upper()


def _deletion(text: str, draw: random.Random) -> str:
    words = text.split()
    return " ".join(w for w in words if draw.random() >= WORDS) or " ".join(words[:1])


CORRUPTIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "image": {"noise": _noise, "blur": _blur, "contrast": _contrast, "occlusion": _occlusion},
    "text": {"typos": _typos, "case": _case, "deletion": _deletion},
}


def corrupted(kind: str, name: str, examples: list[Any], seed: int) -> list[Any]:
    """Examples of a kind ('image' or 'text') under one corruption. Answers that a text brings along stay as they
    are."""

    def spoilt(example: Any) -> Any:
        mark = zlib.crc32(example.encode() if kind == "text" else example.tobytes())
        return CORRUPTIONS[kind][name](example, random.Random(f"{seed} {name} {mark}"))

    if kind == "image":
        return [spoilt(e) for e in examples]
    parts = [example.partition(CHOICE) for example in examples]
    return [spoilt(text) + separator + answers for text, separator, answers in parts]
