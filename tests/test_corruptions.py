"""Inputs are spoilt, the same way each time, and stay readable."""

import numpy as np
import pytest
from PIL import Image

from talos_ray.corruptions import CORRUPTIONS, corrupted

IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 30, 3), dtype=np.uint8)) for i in range(3)]
TEXTS = ["an otter was seen by us near the harbour", "the old hammer", "x"]


@pytest.mark.parametrize("name", CORRUPTIONS["image"])
def test_images_are_spoilt_alike_each_time_and_left_alone(name):
    before = [i.tobytes() for i in IMAGES]
    first, again = corrupted("image", name, IMAGES, 0), corrupted("image", name, IMAGES[::-1], 0)[::-1]
    for image, a, b in zip(IMAGES, first, again, strict=True):
        assert a.tobytes() == b.tobytes() != image.tobytes() and a.size == image.size and a.mode == "RGB"
    assert [i.tobytes() for i in IMAGES] == before
    grey = corrupted("image", name, [Image.new("L", (9, 9), 50)], 0)[0]
    assert grey.size == (9, 9)


def test_noise_and_place_are_drawn_by_seed():
    for name in ("noise", "occlusion"):
        a, b = (corrupted("image", name, IMAGES[:1], seed)[0].tobytes() for seed in (0, 1))
        assert a != b


@pytest.mark.parametrize("name", CORRUPTIONS["text"])
def test_texts_are_spoilt_alike_each_time(name):
    found = corrupted("text", name, TEXTS * 5, 0)
    assert found[:3] == found[3:6] and any(a != b for a, b in zip(found, TEXTS * 5, strict=True))
    assert all(found)
    if name == "typos":
        assert all(
            sorted(a.replace(" ", "")) == sorted(b.replace(" ", "")) for a, b in zip(found, TEXTS * 5, strict=True)
        )
    if name == "deletion":
        assert all(set(a.split()) <= set(b.split()) for a, b in zip(found, TEXTS * 5, strict=True))
