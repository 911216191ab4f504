"""Pixels of any depth come out as light as they went in, or are refused by name."""

import io
import struct
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image

from talos_ray import SpecError, Task
from talos_ray.data import pixels
from talos_ray.data.given import pictures
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


def tiff(width: int, bits: int, number: int, zero_is: int, values: bytes) -> bytes:
    """One row of pixels. number: 1 without a sign, 2 with one, 3 floating-point. zero_is: 0 white, 1 black."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: zero_is, 273: 8, 277: 1, 278: 1, 279: len(values), 339: number}
    values += bytes(len(values) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(values))
    return head + values + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("bits", "number", "zero_is", "values", "wanted"),
    [
        (16, 1, 1, struct.pack("<HH", 257, 65535), [1, 255]),
        (8, 1, 0, b"\0\xff", [255, 0]),
        (32, 3, 1, struct.pack("<ff", 0.5, 1), [128, 255]),
        (12, 1, 1, b"\x00\x0f\xff", "its values have 12 bits; wanted 8 or 16"),
        (16, 2, 1, struct.pack("<hh", 0, 32767), "its values have 16 bits with a sign"),
        (8, 2, 1, b"\xff\x01", "its values have 8 bits with a sign"),
        (16, 1, 0, struct.pack("<HH", 0, 65535), "zero is white, of values of 16 bits"),
        (32, 3, 0, struct.pack("<ff", 0, 1), "zero is white, of values of 32 bits"),
    ],
)
def test_what_a_tiff_says_of_its_values_is_heeded_or_refused(tmp_path, bits, number, zero_is, values, wanted):
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(2, bits, number, zero_is, values))
    if isinstance(wanted, str):
        assert wanted in told(path)
    else:
        assert told(path) is None
        assert np.asarray(as_rgb(Image.open(path)))[0, :, 0].tolist() == wanted


def test_images_in_memory_are_turned_like_files(tmp_path):
    turned = Image.Exif()
    turned[274] = 6  # the top lies on the left
    corner = Image.new("RGB", (4, 2))
    corner.putpixel((0, 0), (255, 0, 0))
    corner.save(tmp_path / "x.png", exif=turned)
    of_file = datasets.Image().decode_example({"bytes": None, "path": str(tmp_path / "x.png")})
    for given in (Image.open(tmp_path / "x.png"), of_file, corner.rotate(-90, expand=True)):
        assert as_rgb(pictures([given]).rows[[0]]["image"][0]).tobytes() == as_rgb(of_file).tobytes()
    with pytest.raises(SpecError, match="input 1 has 3 x 0 pixels"):
        pictures([corner, np.zeros((0, 3, 3), np.uint8)])
    half = Image.new("LA", (1, 1), (0, 51)).convert("La")
    assert as_rgb(pictures([half]).rows[[0]]["image"][0]).getpixel((0, 0)) == (204, 204, 204)


def test_what_a_data_set_asks_to_be_rgb_is_made_so_by_the_written_rule(tmp_path):
    out = io.BytesIO()
    Image.fromarray(np.full((2, 2), 32896, np.uint16)).save(out, "PNG")
    features = datasets.Features({"image": datasets.Image(mode="RGB"), "label": datasets.Value("string")})
    rows = {"image": [{"bytes": out.getvalue(), "path": None}] * 20, "label": ["a", "b"] * 10}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "x")
    data = load_task(Task(name="t", data=str(tmp_path / "x")), 0)
    assert as_rgb(data.train.rows[[0]]["image"][0]).getpixel((0, 0)) == (128, 128, 128)
