"""Pixels of any depth come out as light as they went in, or are refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from talos_ray import SpecError, Task
from talos_ray.data import pixels
from talos_ray.data.pixels import as_rgb, head_and_tail, trouble_with
from talos_ray.inputs import Examples
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


def told(path) -> str | None:
    return trouble_with(*head_and_tail(path), lambda: path)


@pytest.mark.parametrize(
    "kind", ["png", "jpg", "webp", "avif", "bmp", "gif", "tif", "ppm", "tga", "jp2", "pcx", "sgi", "ico", "dib"]
)
def test_what_is_cut_off_is_seen_by_check(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    whole = path.read_bytes()
    assert told(path) is None
    for part in (2, 3):
        path.write_bytes(whole[: len(whole) * (part - 1) // part])
        assert "cannot be decoded" in told(path)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, bits: int, colour: int, values: bytes, more: bytes = b"") -> bytes:
    """One row of pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(b"\0" + values)) + chunk(b"IEND", b"")


SOUND = png(2, 8, 2, b"\0" * 6)
TEXT = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 3_000_000))


@pytest.mark.parametrize(
    ("name", "data", "by_check"),
    [
        ("no-pixels.png", png(0, 8, 2, b""), True),
        ("checksum.png", SOUND[:30] + b"X" + SOUND[31:], True),
        ("short.png", png(2, 8, 2, b"\0"), False),
        ("comment.png", png(2, 8, 2, b"\0" * 6, TEXT), False),  # Pillow takes it for an attack
        ("above.pgm", b"P2 2 1 255\n1 999\n", True),
        ("empty.png", b"", True),
        ("words.bmp", b"<html>", True),
    ],
)
def test_broken_files_are_named_by_check_or_when_they_are_decoded(tmp_path, name, data, by_check):
    path = tmp_path / name
    path.write_bytes(data)
    assert ("cannot be decoded" in (told(path) or "")) == by_check
    for c in ("a", "b"):
        (tmp_path / "x" / c).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (4, 4), i).save(tmp_path / "x" / c / f"{i}.png")
    path.rename(tmp_path / "x" / "a" / name)
    loaded = load_task(Task(name="t", data=str(tmp_path / "x"), validation_share=0.05, test_share=0.05), 0)
    for split in (loaded.train, loaded.validation, loaded.test):
        places = [i for i in range(len(split)) if split.words(i).endswith(name)]
        if places:
            with pytest.raises(SpecError, match=f"{name}' .row {places[0]}.: it cannot be decoded") as caught:
                Examples(split, lambda images: [as_rgb(image) for image in images]).fresh(list(range(len(split))))
            assert len(str(caught.value).splitlines()) == 1
            return
    raise AssertionError("the file is in no split")


def test_what_is_wrong_elsewhere_is_no_image_s_fault(tmp_path):
    for c in ("a", "b"):
        (tmp_path / c).mkdir()
        for i in range(10):
            Image.new("L", (4, 4), i).save(tmp_path / c / f"{i}.png")

    def fails(images) -> None:
        raise ValueError("no memory")

    with pytest.raises(ValueError, match="no memory"):
        Examples(load_task(Task(name="t", data=str(tmp_path)), 0).train, fails).fresh([0, 1])


@pytest.mark.parametrize(
    ("colour", "hidden", "values", "wanted"),
    [
        (0, (65535,), (65535, 0), [255, 0]),
        (0, (0,), (0, 257), [255, 1]),
        (2, (0x1234,) * 3, (0x1234,) * 3 + (0x4321,) * 3, [255, 0x43]),
    ],
    ids=["white", "black", "colours"],
)
def test_transparency_of_16_bits(colour, hidden, values, wanted):
    data = png(2, 16, colour, struct.pack(f">{len(values)}H", *values), chunk(b"tRNS", struct.pack(f">{len(hidden)}H", *hidden)))
    assert np.asarray(as_rgb(Image.open(io.BytesIO(data))))[0, :, 0].tolist() == wanted
