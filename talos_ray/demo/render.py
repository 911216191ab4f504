"""The demo's pictures: small RGB images drawn from a seed, for pretraining and for the tasks.

Two worlds share their concepts and nothing else. `caption_pair` draws the *pretraining* world: flat
colours, clean edges, DejaVu type. The `draw_*` functions draw the *task* world: other
typefaces, textured grounds, blur, odd light, all through one cheap camera. A model pretrained on the
first knows what a "seven" or a "river" is and still reads the second badly, as CLIP does with MNIST,
SVHN or EuroSAT.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 32  # pixels a side of every picture
BIG = 2 * SIZE  # drawn at twice the size, then averaged down: antialiasing
# seed and grey levels (one standard deviation) of the camera's fixed pattern
SENSOR_SEED = 7
SENSOR_PATTERN = 38.0

COLORS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (246, 214, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 210),
    "purple": (130, 50, 170),
    "pink": (244, 130, 180),
    "brown": (120, 72, 32),
    "white": (246, 246, 246),
    "gray": (128, 128, 128),
    "black": (16, 16, 16),
    "cyan": (60, 200, 210),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "heart", "cross", "hexagon", "ring", "moon")
CONTROL_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = ("right", "lower right", "down", "lower left", "left", "upper left", "up", "upper right")
LIGHTS = ("the right", "below", "the left", "above")
SIGNS = (
    "stop", "no entry", "give way", "speed limit thirty", "speed limit fifty", "turn left", "turn right",
    "straight ahead", "priority road", "no parking",
)  # fmt: skip
LAND = ("forest", "river", "sea", "farmland", "highway", "houses", "desert", "snow")
TEXTURES = ("striped", "dotted", "checkered", "grid", "zigzag", "wavy", "ringed", "speckled")

CLEAN_FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf")
TASK_FONTS = (
    "STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "cmr10.ttf", "cmb10.ttf",
    "cmss10.ttf", "cmtt10.ttf", "cmti10.ttf",
)  # fmt: skip

Rng = np.random.Generator
Array = NDArray[Any]
Rgb = tuple[int, ...]
Colour = Sequence[int] | Array  # three numbers, not all of them whole
Captioned = tuple[Image.Image, str]


@functools.lru_cache(maxsize=256)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A typeface that ships with matplotlib, so that every machine draws the same glyphs."""
    import matplotlib  # which every worker would load, and only who draws needs

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


@functools.cache
def _grid() -> tuple[Array, Array]:
    axis = (np.arange(BIG) + 0.5) / BIG * 2 - 1
    return np.meshgrid(axis, axis)  # x, y in [-1, 1], each [BIG, BIG]


def _color(rng: Rng, jitter: int = 20, names: tuple[str, ...] | None = None) -> tuple[str, tuple[int, ...]]:
    name = str(rng.choice(names or tuple(COLORS)))
    rgb = np.clip(np.array(COLORS[name]) + rng.integers(-jitter, jitter + 1, 3), 0, 255)
    return name, tuple(int(v) for v in rgb)


def _apart(rng: Rng, *others: tuple[int, ...], least: float = 110.0) -> tuple[str, tuple[int, ...]]:
    """A colour that can be told from `others` (Euclidean distance in RGB of at least `least`)."""
    while True:
        name, rgb = _color(rng)
        if all(math.dist(rgb, other) >= least for other in others):
            return name, rgb


def _shrink(image: Image.Image) -> Image.Image:
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def _turn(points: Array, angle: float) -> Array:
    c = math.cos(angle)
    s = math.sin(angle)
    turned: Array = points @ np.array([[c, s], [-s, c]])
    return turned


def shape_points(shape: str, radius: float, angle: float) -> Array:
    """Corners of a filled shape around the origin, [n, 2], in pixels of the big canvas."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    if shape in ("circle", "ring", "moon"):
        p = np.stack([np.cos(t), np.sin(t)], 1)
    elif shape == "square":
        p = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.85
    elif shape == "triangle":
        p = np.array([[0, -1], [0.95, 0.8], [-0.95, 0.8]])
    elif shape == "diamond":
        p = np.array([[0, -1.1], [0.7, 0], [0, 1.1], [-0.7, 0]])
    elif shape == "hexagon":
        p = np.stack([np.cos(np.arange(6) * np.pi / 3), np.sin(np.arange(6) * np.pi / 3)], 1)
    elif shape == "star":
        r = np.where(np.arange(10) % 2 == 0, 1.1, 0.45)
        a = np.arange(10) * np.pi / 5 - np.pi / 2
        p = np.stack([r * np.cos(a), r * np.sin(a)], 1)
    elif shape == "heart":
        p = (
            np.stack(
                [16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))], 1
            )
            / 16
        )
    elif shape == "cross":
        w = 0.33
        p = np.array(
            [[-w, -1], [w, -1], [w, -w], [1, -w], [1, w], [w, w], [w, 1], [-w, 1], [-w, w], [-1, w], [-1, -w], [-w, -w]]
        )
    elif shape == "arrow":
        p = np.array([[-1, -0.25], [0.2, -0.25], [0.2, -0.75], [1.05, 0], [0.2, 0.75], [0.2, 0.25], [-1, 0.25]])
    else:
        raise KeyError(shape)
    return _turn(p * radius, angle)


def _draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    center: Array,
    radius: float,
    angle: float,
    fill: Rgb,
    ground: Rgb | None = None,
) -> None:
    at = np.asarray(center, dtype=float)
    draw.polygon([tuple(p) for p in shape_points(shape, radius, angle) + at], fill=fill)
    if shape == "ring":
        draw.polygon([tuple(p) for p in shape_points("circle", radius * 0.55, 0) + at], fill=ground)
    elif shape == "moon":
        shift = _turn(np.array([[radius * 0.55, -radius * 0.15]]), angle)[0]
        draw.polygon([tuple(p) for p in shape_points("circle", radius * 0.85, 0) + at + shift], fill=ground)


def _draw_text(draw: ImageDraw.ImageDraw, text: str, center: Array, typeface: str, size: int, fill: Rgb) -> None:
    draw.text(tuple(center), text, font=font(typeface, size), fill=fill, anchor="mm")


def _smooth_noise(rng: Rng, cells: int) -> Array:
    """Low-frequency noise in [0, 1], [BIG, BIG]."""
    small = (rng.random((cells, cells)) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((BIG, BIG), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def _mix(a: Colour, b: Colour, weight: Array) -> Array:
    """Blend two colours by a [BIG, BIG] weight into a float image [BIG, BIG, 3]."""
    w = np.clip(weight, 0, 1)[..., None]
    mixed: Array = np.asarray(a, dtype=np.float32) * (1 - w) + np.asarray(b, dtype=np.float32) * w
    return mixed


def _as_image(pixels: Array) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _ground(rng: Rng, a: Colour, b: Colour) -> Image.Image:
    """A mottled background between two colours."""
    return _as_image(_mix(a, b, _smooth_noise(rng, int(rng.integers(3, 9)))))


def weather(rng: Rng, image: Image.Image, noise: float, blur: float, light: float) -> Image.Image:
    """Shrink, then camera effects: blur (pixels), uneven light (0-1) and sensor noise (grey levels)."""
    small = _shrink(image)
    if blur:
        small = small.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, blur))))
    pixels: Array = np.asarray(small, dtype=np.float32)
    if light:
        x, y = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE))
        a = rng.uniform(0, 2 * np.pi)
        gain = 1 - light * rng.uniform(0.3, 1) * (0.5 + 0.5 * (x * math.cos(a) + y * math.sin(a)))
        pixels = pixels * gain[..., None]
    pixels = pixels + rng.normal(0, noise * rng.uniform(0.4, 1), pixels.shape)
    return _as_image(pixels)


@functools.cache
def _sensor() -> Array:
    """Fixed-pattern noise of the one cheap camera, in grey levels, [SIZE, SIZE, 1]."""
    return np.random.default_rng(SENSOR_SEED).normal(0, SENSOR_PATTERN, (SIZE, SIZE, 1))


def snapshot(rng: Rng, image: Image.Image) -> Image.Image:
    """A picture of the task world: taken by one cheap camera, whose sensor adds the same pattern to every picture.

    What all tasks have to learn is to look past that pattern, so edits for different tasks help each other, as
    real tasks do that share a domain; what they see behind it is each task's own.
    """
    return _as_image(np.asarray(weather(rng, image, noise=8, blur=0.5, light=0.5), dtype=np.float32) + _sensor())


def _texture_field(kind: str, x: Array, y: Array, frequency: float, phase: float, rng: Rng, sharp: float) -> Array:
    """Weight in [0, 1] of the second colour of a two-colour pattern."""
    f = frequency * np.pi
    if kind == "striped":
        v = np.sin(f * x + phase)
    elif kind == "dotted":
        v = np.sin(f * x + phase) * np.sin(f * y + phase) * 2 - 0.9
        v = np.where(np.sin(f * x + phase) > 0, v, -1)
    elif kind == "checkered":
        v = np.sign(np.sin(f * x + phase)) * np.sign(np.sin(f * y + phase))
    elif kind == "grid":
        v = np.maximum(np.cos(f * x + phase), np.cos(f * y + phase)) - 0.8
    elif kind == "zigzag":
        v = np.sin(f * (y + 0.35 * np.abs(((x * frequency / 2.5) % 2) - 1) * 2) + phase)
    elif kind == "wavy":
        v = np.sin(f * y + phase + 1.8 * np.sin(f * 0.7 * x))
    elif kind == "ringed":
        v = np.sin(f * np.hypot(x, y) * 1.3 + phase)
    elif kind == "speckled":
        v = _smooth_noise(rng, 22) - 0.68
    else:
        raise KeyError(kind)
    weight: Array = 1 / (1 + np.exp(-sharp * v))
    return weight


def _wavy_band(x: Array, y: Array, offset: float, swing: float, angle: float, phase: float) -> Array:
    """Distance of each pixel from a winding line, [BIG, BIG]."""
    u = x * math.cos(angle) + y * math.sin(angle)
    v = -x * math.sin(angle) + y * math.cos(angle)
    distance: Array = np.abs(v - offset - swing * np.sin(2.2 * u + phase))
    return distance


# ---------------------------------------------------------------- the pretraining world: flat and clean


def _clean_shape(rng: Rng) -> Captioned:
    shape = str(rng.choice(SHAPES))
    name, rgb = _color(rng, names=CONTROL_COLORS if rng.random() < 0.7 else None)
    ground_name, ground = _apart(rng, rgb)
    radius = rng.uniform(13, 26)
    image = Image.new("RGB", (BIG, BIG), ground)
    center = rng.uniform(radius, BIG - radius, 2)
    _draw_shape(ImageDraw.Draw(image), shape, center, radius, rng.normal(0, 0.12), rgb, ground)
    size = "small " if radius < 16 else "large " if radius > 23 else ""
    text = f"a {size}{name} {shape}"
    return image, text + (f" on a {ground_name} background" if rng.random() < 0.5 else "")


def _clean_digit(rng: Rng) -> Captioned:
    i = int(rng.integers(10))
    rgb_name, rgb = _color(rng)
    ground_name, ground = _apart(rng, rgb, least=160)
    image = Image.new("RGB", (BIG, BIG), ground)
    _draw_text(
        ImageDraw.Draw(image),
        str(i),
        BIG / 2 + rng.uniform(-6, 6, 2),
        str(rng.choice(CLEAN_FONTS)),
        int(rng.integers(40, 62)),
        rgb,
    )
    word = str(rng.choice([f"the digit {DIGIT_WORDS[i]}", f"the number {DIGIT_WORDS[i]}"]))
    return image, word + (
        f" in {rgb_name}" if rng.random() < 0.4 else f" on {ground_name}" if rng.random() < 0.3 else ""
    )


def _scatter_points(rng: Rng, n: int, radius: float, margin: float) -> list[Array]:
    points: list[Array] = []
    tries = 0
    while len(points) < n:
        p = rng.uniform(margin, BIG - margin, 2)
        tries += 1
        if all(np.hypot(*(p - q)) > 2.15 * radius for q in points) or tries > 400:
            points.append(p)
    return points


def _clean_count(rng: Rng) -> Captioned:
    n = int(rng.integers(1, 7))
    shape = str(rng.choice(("circle", "square", "triangle", "star", "heart")))
    name, rgb = _color(rng)
    _, ground = _apart(rng, rgb)
    image = Image.new("RGB", (BIG, BIG), ground)
    draw = ImageDraw.Draw(image)
    for p in _scatter_points(rng, n, 8.5, 10):
        _draw_shape(draw, shape, p, 8.5, 0, rgb, ground)
    plural = shape if n == 1 else shape + "s"
    return (
        image,
        f"{DIGIT_WORDS[n]} {name} {plural}"
        if rng.random() < 0.6
        else f"{DIGIT_WORDS[n]} {'object' if n == 1 else 'objects'}",
    )


def _clean_texture(rng: Rng) -> Captioned:
    kind = str(rng.choice(TEXTURES))
    a_name, a = _color(rng)
    b_name, b = _apart(rng, a)
    x, y = _grid()
    if rng.random() < 0.5 and kind == "striped":
        x, y = y, x
    field = _texture_field(kind, x, y, rng.uniform(2.5, 5), rng.uniform(0, 6.3), rng, 14)
    word = str(rng.choice([f"a {kind} pattern", f"a {kind} texture", f"a {a_name} and {b_name} {kind} pattern"]))
    return _as_image(_mix(a, b, field)), word


def _clean_arrow(rng: Rng) -> Captioned:
    i = int(rng.integers(8))
    name, rgb = _color(rng)
    _, ground = _apart(rng, rgb)
    image = Image.new("RGB", (BIG, BIG), ground)
    radius = rng.uniform(17, 27)
    _draw_shape(
        ImageDraw.Draw(image),
        "arrow",
        BIG / 2 + rng.uniform(-4, 4, 2),
        radius,
        i * np.pi / 4 + rng.normal(0, 0.06),
        rgb,
        ground,
    )
    return (
        image,
        f"a {name} arrow pointing {DIRECTIONS[i]}" if rng.random() < 0.5 else f"an arrow pointing {DIRECTIONS[i]}",
    )


def _sphere(x: Array, y: Array, cx: float, cy: float, radius: float, angle: float) -> tuple[Array, Array]:
    """Inside-mask and Lambert shading (0-1) of a ball lit from `angle` in the picture's plane."""
    u = (x - cx) / radius
    v = (y - cy) / radius
    r2 = u * u + v * v
    z = np.sqrt(np.clip(1 - r2, 0, 1))
    shade = 0.8 * (u * math.cos(angle) + v * math.sin(angle)) + 0.45 * z
    return r2 < 1, np.clip(shade, 0, 1)


def _clean_ball(rng: Rng) -> Captioned:
    i = int(rng.integers(4))
    name, rgb = _color(rng, names=CONTROL_COLORS)
    x, y = _grid()
    cx, cy = rng.uniform(-0.2, 0.2, 2)
    radius = rng.uniform(0.5, 0.75)
    inside, shade = _sphere(x, y, cx, cy, radius, i * np.pi / 2 + rng.normal(0, 0.08))
    _, ground = _color(rng, names=("white", "gray", "cyan", "yellow"))
    pixels = np.where(inside[..., None], _mix(np.array(rgb) * 0.12, rgb, shade), np.asarray(ground, dtype=np.float32))
    return _as_image(
        pixels
    ), f"a {name} ball lit from {LIGHTS[i]}" if rng.random() < 0.5 else f"a ball lit from {LIGHTS[i]}"


def _sign(
    draw: ImageDraw.ImageDraw,
    sign: str,
    center: Array,
    r: float,
    angle: float,
    typeface: str,
    tint: Callable[[Rgb], Rgb] = tuple,
) -> None:
    """A road sign, drawn flat. `tint` recolours every paint, for worn or badly lit plates."""
    red, white, black, blue, yellow = (
        tint(c) for c in ((200, 24, 36), (245, 245, 245), (15, 15, 15), (30, 80, 190), (250, 205, 30))
    )

    def poly(shape: str, radius: float, turn: float = 0.0, fill: Rgb = white) -> None:
        draw.polygon([tuple(p) for p in shape_points(shape, radius, angle + turn) + np.asarray(center)], fill=fill)

    if sign == "stop":
        p = np.stack([np.cos(np.arange(8) * np.pi / 4 + np.pi / 8), np.sin(np.arange(8) * np.pi / 4 + np.pi / 8)], 1)
        draw.polygon([tuple(q) for q in _turn(p * r, angle) + np.asarray(center)], fill=red)
        _draw_text(draw, "STOP", center, typeface, max(8, int(r * 0.62)), white)
    elif sign == "no entry":
        poly("circle", r, fill=red)
        bar = np.array([[-0.65, -0.18], [0.65, -0.18], [0.65, 0.18], [-0.65, 0.18]]) * r
        draw.polygon([tuple(q) for q in _turn(bar, angle) + np.asarray(center)], fill=white)
    elif sign == "give way":
        poly("triangle", r, np.pi, red)
        poly("triangle", r * 0.55, np.pi, white)
    elif sign.startswith("speed limit"):
        poly("circle", r, fill=red)
        poly("circle", r * 0.76, fill=white)
        _draw_text(draw, "30" if sign.endswith("thirty") else "50", center, typeface, int(r * 1.0), black)
    elif sign in ("turn left", "turn right", "straight ahead"):
        poly("circle", r, fill=blue)
        poly("arrow", r * 0.68, {"turn left": np.pi, "turn right": 0.0, "straight ahead": -np.pi / 2}[sign], white)
    elif sign == "priority road":
        poly("square", r, np.pi / 4, white)
        poly("square", r * 0.72, np.pi / 4, yellow)
    elif sign == "no parking":
        poly("circle", r, fill=red)
        poly("circle", r * 0.78, fill=blue)
        bar = np.array([[-0.8, -0.12], [0.8, -0.12], [0.8, 0.12], [-0.8, 0.12]]) * r
        draw.polygon([tuple(q) for q in _turn(bar, angle + np.pi / 4) + np.asarray(center)], fill=red)
    else:
        raise KeyError(sign)


def _clean_sign(rng: Rng) -> Captioned:
    sign = str(rng.choice(SIGNS))
    _, ground = _color(rng, names=("white", "gray", "cyan", "green"))
    image = Image.new("RGB", (BIG, BIG), ground)
    _sign(ImageDraw.Draw(image), sign, BIG / 2 + rng.uniform(-3, 3, 2), rng.uniform(22, 29), 0.0, "DejaVuSans-Bold.ttf")
    return image, str(rng.choice([f"a {sign} sign", f"a road sign that says {sign}"]))


def _clean_land(rng: Rng) -> Captioned:
    kind = str(rng.choice(LAND))
    x, y = _grid()
    c = {
        k: np.array(_color(rng, 14, (k,))[1], dtype=np.float32)
        for k in ("green", "blue", "yellow", "gray", "brown", "white", "orange")
    }
    flat = np.zeros((BIG, BIG, 3), dtype=np.float32)
    if kind == "river":
        d = _wavy_band(
            x, y, rng.uniform(-0.2, 0.2), rng.uniform(0.1, 0.3), rng.choice([0, np.pi / 2]), rng.uniform(0, 6)
        )
        image = _as_image(_mix(c["green"], c["blue"], (d < 0.16).astype(float)))
    elif kind == "highway":
        d = _wavy_band(x, y, rng.uniform(-0.2, 0.2), 0.0, rng.choice([0, np.pi / 2]), 0)
        image = _as_image(np.where((d < 0.02)[..., None], 250, _mix(c["green"], c["gray"], (d < 0.2).astype(float))))
    elif kind in ("sea", "desert", "snow"):
        paints: dict[str, Array] = {"sea": c["blue"], "desert": (c["yellow"] + c["orange"]) / 2, "snow": c["white"]}
        paint = paints[kind]
        image = _as_image(flat + paint)
    elif kind == "farmland":
        v = np.sign(np.sin((x if rng.random() < 0.5 else y) * rng.uniform(8, 14)))
        image = _as_image(_mix(c["green"], c["brown"], (v > 0).astype(float)))
    else:
        image = _as_image(flat + (c["green"] * 0.55 if kind == "forest" else c["green"]))
        draw = ImageDraw.Draw(image)
        for p in _scatter_points(rng, int(rng.integers(7, 14)), 6, 6):
            if kind == "forest":
                _draw_shape(draw, "circle", p, 6, 0, tuple(int(v) for v in c["green"]))
            else:
                _draw_shape(draw, "square", p, 5.5, 0, tuple(int(v) for v in c["brown"]))
    return image, str(rng.choice([f"an aerial view of {kind}", f"a map of {kind}"]))


_CLEAN = (
    (_clean_shape, 0.24),
    (_clean_digit, 0.18),
    (_clean_count, 0.10),
    (_clean_texture, 0.10),
    (_clean_arrow, 0.10),
    (_clean_ball, 0.06),
    (_clean_sign, 0.09),
    (_clean_land, 0.13),
)


def caption_pair(rng: Rng) -> tuple[Image.Image, str]:
    """One image of the pretraining world and its caption."""
    kinds, shares = zip(*_CLEAN, strict=True)
    image, text = kinds[int(rng.choice(len(kinds), p=shares))](rng)
    return _shrink(image), text


# ---------------------------------------------------------------- the task world: worn, textured, badly lit


def draw_street_numbers(label: int, rng: Rng) -> Image.Image:
    """House numbers: other typefaces on mottled walls, neighbours cut off at the sides (as SVHN)."""
    _, rgb = _color(rng, 20)
    _, a = _apart(rng, rgb, least=120)
    _, b = _apart(rng, rgb, least=120)
    image = _ground(rng, a, np.asarray(a) * 0.6 + np.asarray(b) * 0.4)
    draw = ImageDraw.Draw(image)
    face = str(rng.choice(TASK_FONTS))
    size = int(rng.integers(40, 58))
    at = BIG / 2 + rng.uniform(-4, 4, 2)
    for side in (-1, 1):
        if rng.random() < 0.25:
            _draw_text(
                draw, str(rng.integers(10)), at + np.array([side * size * 0.72, rng.uniform(-3, 3)]), face, size, rgb
            )
    _draw_text(draw, str(label), at, face, size, rgb)
    image = image.rotate(float(rng.normal(0, 9)), Image.Resampling.BILINEAR, fillcolor=tuple(int(v) for v in a))
    return snapshot(rng, image)


def draw_road_signs(label: int, rng: Rng) -> Image.Image:
    """Worn signs, tilted, small in the frame, in dusk or glare (as GTSRB)."""
    _, a = _color(rng, 40)
    _, b = _color(rng, 40)
    image = _ground(rng, a, b)
    fade = rng.uniform(0.4, 0.95)
    grey = rng.uniform(40, 190)

    def tint(rgb: Rgb) -> Rgb:
        return tuple(int(fade * v + (1 - fade) * grey) for v in rgb)

    _sign(
        ImageDraw.Draw(image),
        SIGNS[label],
        BIG / 2 + rng.uniform(-6, 6, 2),
        rng.uniform(18, 28),
        rng.normal(0, 0.2),
        "cmb10.ttf",
        tint,
    )
    return snapshot(rng, image)


def draw_land_use(label: int, rng: Rng) -> Image.Image:
    """Satellite tiles from layered noise, in the colours of a real sensor (as EuroSAT)."""
    kind = LAND[label]
    x, y = _grid()
    rough = 0.5 * _smooth_noise(rng, 24) + 0.5 * _smooth_noise(rng, 9)
    soil = np.array([112, 104, 78]) + rng.integers(-22, 22, 3)
    plant = np.array([58, 82, 46]) + rng.integers(-16, 16, 3)
    water = np.array([38, 58, 74]) + rng.integers(-14, 14, 3)
    tarmac = np.array([132, 128, 124]) + rng.integers(-20, 20, 3)
    base = _mix(plant, soil, _smooth_noise(rng, 4) * 1.2 - 0.1)
    angle = rng.uniform(0, np.pi)
    phase = rng.uniform(0, 6.3)
    if kind == "forest":
        image = _mix(plant * 0.5, plant * 1.25, _smooth_noise(rng, 26))
    elif kind == "river":
        d = _wavy_band(x, y, rng.uniform(-0.4, 0.4), rng.uniform(0.1, 0.4), angle, phase)
        image = np.where((d < rng.uniform(0.08, 0.2))[..., None], water, base)
    elif kind == "sea":
        image = _mix(water * 0.8, water * 1.3, _smooth_noise(rng, 6))
    elif kind == "farmland":
        patch = np.sign(np.sin((x * math.cos(angle) + y * math.sin(angle)) * rng.uniform(3, 7) + phase))
        cross = np.sign(np.sin((y * math.cos(angle) - x * math.sin(angle)) * rng.uniform(2, 5)))
        image = _mix(plant * 1.2, soil * 1.2, 0.5 + 0.3 * patch + 0.2 * cross)
    elif kind == "highway":
        d = _wavy_band(x, y, rng.uniform(-0.5, 0.5), 0.04, angle, phase)
        image = np.where((d < rng.uniform(0.05, 0.12))[..., None], tarmac, base)
    elif kind == "houses":
        canvas = _as_image(base)
        draw = ImageDraw.Draw(canvas)
        for p in _scatter_points(rng, int(rng.integers(10, 20)), 5, 3):
            roof = np.array([150, 120, 108]) * rng.uniform(0.6, 1.3)
            draw.polygon(
                [tuple(q) for q in shape_points("square", rng.uniform(3.5, 6), angle) + p],
                fill=tuple(int(min(v, 255)) for v in roof),
            )
        image = np.asarray(canvas, dtype=np.float32)
    elif kind == "desert":
        image = _mix(soil * 1.15, soil * 1.6, _texture_field("wavy", x, y, rng.uniform(2, 5), phase, rng, 2))
    else:  # snow, with shadows and bare rock
        image = _mix([225, 228, 235], soil * 0.9, np.clip(_smooth_noise(rng, 5) * 2 - 1.0, 0, 1))
    image = image * (0.75 + 0.5 * rough[..., None]) * rng.uniform(0.65, 1.15)
    return snapshot(rng, _as_image(image))


def draw_surfaces(label: int, rng: Rng) -> Image.Image:
    """Surfaces: the pattern turned, bent, faint and under slanting light (as DTD)."""
    x, y = _grid()
    a = rng.normal(0, 0.3)
    bend = rng.uniform(0.02, 0.08)
    u = x * math.cos(a) + y * math.sin(a) + bend * np.sin(2 * y + rng.uniform(0, 6))
    v = -x * math.sin(a) + y * math.cos(a) + bend * np.sin(2 * x + rng.uniform(0, 6))
    field = _texture_field(TEXTURES[label], u, v, rng.uniform(2.5, 4.5), rng.uniform(0, 6.3), rng, rng.uniform(6, 12))
    _, p = _color(rng, 40)
    q = np.clip(np.asarray(p) + rng.choice([-1, 1]) * rng.uniform(100, 170) + rng.normal(0, 12, 3), 0, 255)
    pixels = _mix(p, q, field) * (0.8 + 0.4 * _smooth_noise(rng, 7)[..., None])
    return snapshot(rng, _as_image(pixels))


def draw_counts(label: int, rng: Rng) -> Image.Image:
    """One to six things of mixed shape, colour and size on a cluttered ground (as CLEVR counts)."""
    _, a = _color(rng, 30)
    b = np.clip(np.asarray(a) + rng.normal(0, 14, 3), 0, 255)
    image = _ground(rng, a, b)
    draw = ImageDraw.Draw(image)
    _, rgb = _apart(rng, a, least=130)
    for p in _scatter_points(rng, label + 1, 8.5, 9):
        _draw_shape(
            draw,
            str(rng.choice(("circle", "square", "triangle", "diamond", "hexagon", "cross"))),
            p,
            rng.uniform(7, 9),
            rng.uniform(0, 6),
            rgb,
            a,
        )
    return snapshot(rng, image)


def draw_pointers(label: int, rng: Rng) -> Image.Image:
    """Thin hand-made pointers on patterned ground (orientation)."""
    _, rgb = _color(rng, 30)
    _, a = _apart(rng, rgb, least=120)
    x, y = _grid()
    field = _texture_field(
        str(rng.choice(("striped", "wavy", "checkered"))), x, y, rng.uniform(2, 6), rng.uniform(0, 6), rng, 3
    )
    image = _as_image(_mix(a, np.asarray(a) * 0.72 + 36, field))
    draw = ImageDraw.Draw(image)
    angle = label * np.pi / 4 + rng.normal(0, 0.1)
    r = rng.uniform(15, 27)
    at = BIG / 2 + rng.uniform(-7, 7, 2)
    width = int(rng.integers(3, 7))
    tip = at + _turn(np.array([[r, 0.0]]), angle)[0]
    draw.line([tuple(at + _turn(np.array([[-r, 0.0]]), angle)[0]), tuple(tip)], fill=rgb, width=width)
    for side in (-1, 1):
        wing = tip + _turn(np.array([[-0.62 * r, side * rng.uniform(0.35, 0.6) * r]]), angle)[0]
        draw.line([tuple(tip), tuple(wing)], fill=rgb, width=width)
    return snapshot(rng, image)


def draw_lighting(label: int, rng: Rng) -> Image.Image:
    """A rough stone on a table under one lamp: where does the light come from? (lighting)"""
    x, y = _grid()
    angle = label * np.pi / 2 + rng.normal(0, 0.22)
    _, a = _color(rng, 30)
    pixels = _mix(np.asarray(a) * 0.7, np.asarray(a) * 1.1, _smooth_noise(rng, 8))
    cx, cy = rng.uniform(-0.3, 0.3, 2)
    radius = rng.uniform(0.4, 0.7)
    shadow, _ = _sphere(
        x, y, cx - 0.3 * radius * math.cos(angle), cy - 0.3 * radius * math.sin(angle), radius * 1.05, 0
    )
    pixels = np.where(shadow[..., None], pixels * 0.65, pixels)
    inside, shade = _sphere(x, y, cx, cy, radius, angle)
    _, rgb = _color(rng, 40)
    lit = _mix(np.asarray(rgb) * 0.25, np.asarray(rgb) * 0.95, shade * (0.7 + 0.6 * _smooth_noise(rng, 12)))
    pixels = np.where(inside[..., None], lit, pixels)
    return snapshot(rng, _as_image(pixels))


def draw_scanned_digits(scan: Array) -> Image.Image:
    """Real handwriting: an 8 x 8 scan that ships with scikit-learn (UCI optical digits), dark ink on paper."""
    grey = 255 - np.clip(scan / 16 * 255, 0, 255)
    image = Image.new("L", (SIZE, SIZE), 255)
    image.paste(Image.fromarray(grey.astype(np.uint8)).resize((26, 26), Image.Resampling.BICUBIC), (3, 3))
    return image.convert("RGB")


def draw_coloured_shapes(label: int, rng: Rng) -> Image.Image:
    """The control task: every shape in every colour, drawn as in pretraining, from fresh seeds."""
    shape = SHAPES[label // len(CONTROL_COLORS)]
    color = CONTROL_COLORS[label % len(CONTROL_COLORS)]
    _, rgb = _color(rng, 8, (color,))
    _, ground = _apart(rng, rgb, least=140)
    radius = rng.uniform(19, 26)
    image = Image.new("RGB", (BIG, BIG), ground)
    _draw_shape(
        ImageDraw.Draw(image), shape, rng.uniform(radius, BIG - radius, 2), radius, rng.normal(0, 0.06), rgb, ground
    )
    return _shrink(image)
