"""Pixels of any depth come out as light as they went in, or are refused by name."""

import io

import numpy as np
import pytest
from PIL import Image

from talos_ray import SpecError, Task
from talos_ray.data import pixels
from talos_ray.data.pixels import as_rgb
from talos_ray.orchestrate.plan import _check_images
from talos_ray.tasks import load_task


def saved(image: Image.Image, kind: str) -> Image.Image:
    out = io.BytesIO()
    image.save(out, kind)
    return Image.open(io.BytesIO(out.getvalue()))


def test_depths_are_scaled_by_the_written_rule():
    wide = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert np.asarray(as_rgb(saved(Image.fromarray(wide), kind)))[0, :, 0].tolist() == [0, 1, 128, 255]
    floats = np.array([[0, 0.25, 0.5, 1]], dtype=np.float32)
    assert np.asarray(as_rgb(saved(Image.fromarray(floats), "TIFF")))[0, :, 1].tolist() == [0, 64, 128, 255]
    whole = np.array([[0, 65535]], dtype=np.int32)
    assert np.asarray(as_rgb(saved(Image.fromarray(whole), "TIFF")))[0, :, 2].tolist() == [0, 255]
    for values, told in (
        (np.array([[0, 2.5]], dtype=np.float32), "go from 0 to 2.5; wanted 0 to 1"),
        (np.array([[0, np.nan]], dtype=np.float32), "wanted 0 to 1"),
        (np.array([[-1, 70000]], dtype=np.int32), "go from -1 to 70000"),
        (np.array([[0, 200]], dtype=np.int32), "go from 0 to 200"),  # 8 bits in 32? it would be read as black
    ):
        with pytest.raises(SpecError, match=told):
            as_rgb(Image.fromarray(values))


def test_transparency_goes_onto_white():
    red = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    assert as_rgb(saved(red, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert as_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 255))).getpixel((0, 0)) == (255, 0, 0)
    assert as_rgb(Image.new("LA", (1, 1), (0, 51))).getpixel((0, 0)) == (204, 204, 204)
    palette = Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30])
    assert as_rgb(palette).getpixel((0, 0)) == (10, 20, 30)
    palette.info["transparency"] = 0
    assert as_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    plain = Image.effect_noise((8, 8), 90).convert("RGB")
    assert as_rgb(plain).tobytes() == plain.tobytes()
    for mode in ("CMYK", "L", "1"):
        assert as_rgb(plain.convert(mode)).tobytes() == plain.convert(mode).convert("RGB").tobytes()


def test_what_cannot_be_read_is_named_before_any_work(tmp_path, monkeypatch):
    for c in ("a", "b"):
        (tmp_path / "x" / c).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (4, 4), i).save(tmp_path / "x" / c / f"{i}.png")
    task = Task(name="t", data=str(tmp_path / "x"))
    _check_images(load_task(task, 0))
    place = tmp_path / "x" / "a" / "3.tiff"
    for image, told in (
        (Image.fromarray(np.full((4, 4), 7.0, np.float32)), "3.tiff': its floating-point values go from 7 to 7"),
        (Image.fromarray(np.full((4, 4), 7, np.int32)), "3.tiff': its 32-bit values go from 7 to 7"),
    ):
        image.save(place)
        with pytest.raises(SpecError, match=told):
            _check_images(load_task(task, 0))
    place.unlink()
    monkeypatch.setattr(pixels, "MOST", 15)
    with pytest.raises(SpecError, match="20 image|it has 4 x 4 pixels; wanted at most 0 megapixels"):
        _check_images(load_task(task, 0))
