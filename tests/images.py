"""Small image files made on the spot."""

import numpy as np
from PIL import Image


def write_images(folder, n: int, seed: int = 0):
    """A CSV of image paths and labels: bright left half or bright right half, plus noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(seed), ["file,side"]
    for i in range(n):
        side = i % 2
        pixels = rng.integers(0, 90, (16, 16, 3))
        pixels[:, side * 8 : side * 8 + 8] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{('left', 'right')[side]}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "rows.csv")
