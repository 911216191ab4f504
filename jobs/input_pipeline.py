"""Does loading keep up with training? Samples a second of each alone and of both together, on JPEG photographs and ViT-B/32.

    python jobs/input_pipeline.py                 # with 0 and 2 loaders, and from a node's file of decoded inputs
    python jobs/input_pipeline.py --loaders 0 4 8 # on a machine with more cores, or a GPU

Images are drawn noise of 320 x 240 pixels, as JPEG; decoding and preprocessing are open_clip's own for this model. Training is
sparse, a tenth of the rows. A GPU is starved where "loading alone" is below "training alone".
"""

import argparse
import io
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from jobs.measuring import DEVICE, KEEP
from talos_ray import inputs, tasks
from talos_ray.core.finetune import Plan, finetune
from talos_ray.core.mask import mask_from_flags, select
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.models import layout_of
from talos_ray.models.clip import load

IMAGES, BATCH = (512, 16) if DEVICE.type == "cpu" else (2048, 128)
STEPS, CLASSES = 12, 10


def photographs() -> tasks.Split:
    dice, rows = np.random.default_rng(0), []
    for _ in range(IMAGES):
        coarse = Image.fromarray(dice.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((320, 240), Image.BICUBIC)
        out = io.BytesIO()
        coarse.save(out, format="JPEG")
        rows.append({"bytes": out.getvalue(), "path": None})
    made = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    return tasks.Split(made, "image", torch.arange(IMAGES) % CLASSES)


def rate(work: Callable[[], int]) -> float:
    """Samples a second."""
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loaders", type=int, nargs="+", default=[0, 2], help="processes that prepare ahead")
    args = parser.parse_args()
    inputs.MEMORY_BYTES = 0  # as if there were too many to keep in memory
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that the weights are random
    family = load("open_clip:ViT-B-32/", pretrained=False)
    module, layout = family.module.to(DEVICE), layout_of(family)
    mask = mask_from_flags(layout, select(layout, "random", KEEP, granularity="row"))
    head = torch.randn(CLASSES, module.visual.output_dim, device=DEVICE)
    plan = Plan("photographs", IMAGES, STEPS, BATCH, 1e-5, 1, 0)
    parts = [part for step in range(STEPS) for part in plan.parts_at(step)]
    split = photographs()

    def examples(node: inputs.Node | None = None) -> inputs.Examples:
        return inputs.Examples(split, family.preprocess, DEVICE, node)

    def train(batches: Iterable) -> int:
        feed, optimizer = iter(batches), SparseAdamW(module, mask, 1e-5)
        autocast = torch.bfloat16 if DEVICE.type == "cuda" else None
        finetune(optimizer, plan, lambda x: family.logits(x, head), lambda _: next(feed), autocast=autocast)
        optimizer.close()
        return STEPS * BATCH

    ready = list(examples().each(parts))
    train(ready)  # not counted
    alone = rate(lambda: train(ready))
    table = Table("loaders", "loading alone", "training alone", "both together", "share of training alone")
    for loaders in args.loaders:
        loading = rate(lambda n=loaders: sum(len(y) for _, y in examples().each(parts, n)))
        both = rate(lambda n=loaders: train(examples().each(parts, n)))
        table.add_row(str(loaders), f"{loading:.0f}/s", f"{alone:.0f}/s", f"{both:.0f}/s", f"{both / alone:.0%}")
    with tempfile.TemporaryDirectory() as folder:
        kept = examples(inputs.Node(Path(folder), 1 << 40, "ViT-B/32"))
        list(kept.each(parts, max(args.loaders)))
        loading = rate(lambda: sum(len(y) for _, y in kept.each(parts)))
        both = rate(lambda: train(kept.each(parts)))
        table.add_row("kept on the node", f"{loading:.0f}/s", f"{alone:.0f}/s", f"{both:.0f}/s", f"{both / alone:.0%}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)


if __name__ == "__main__":
    main()
