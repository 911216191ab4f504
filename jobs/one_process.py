"""The whole method in one process, without Ray: calibrate, select, train every task sparse and dense, merge, roll back.

    python jobs/one_process.py             # the demo, a ViT-B/32 and a BERT-base; wants a GPU for the last two
    python jobs/one_process.py --only demo

Prints what each stage costs, in seconds and, on a GPU, in memory. The demo's tasks are its own. The large models have random
weights and learn to tell drawn classes apart: what they cost is real, their scores mean little. One coefficient for all tasks
is chosen from the paper's 21 points, on validation data; no control task is watched.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from jobs.measuring import DEVICE, KEEP, seconds
from jobs.subjects import bert, classifier, tower
from talos_ray.config import Train
from talos_ray.core.blocks import gather
from talos_ray.core.compose import Composer
from talos_ray.core.delta import make_delta
from talos_ray.core.finetune import Plan, finetune
from talos_ray.core.fisher import SquaredGradients
from talos_ray.core.layout import Layout, eligible_layout, fingerprint
from talos_ray.core.mask import Mask, mask_from_flags, round_keep, select
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.core.seeds import derive_seed
from talos_ray.inputs import Examples
from talos_ray.models import layout_of, load_model
from talos_ray.spec import load_spec
from talos_ray.tasks import load_task

DEMO = Path(__file__).parents[1] / "talos_ray/demo/spec.yaml"
ROUNDS, DAMPING, POINTS = 4, 0.1, 21
CAST = torch.bfloat16 if DEVICE.type == "cuda" else None


@dataclass(frozen=True)
class Learner:
    """One task: logits of inputs, and a batch of a split ('train', 'validation', 'test') by positions."""

    name: str
    logits: Callable
    batch: Callable[[str, torch.Tensor], tuple]
    sizes: dict[str, int]


@dataclass(frozen=True)
class Subject:
    name: str
    module: nn.Module
    layout: Layout
    tasks: list[Learner]
    train: Train
    dense_lr: float
    samples: int  # a task, scored in each round


def demo() -> Subject:
    spec, family = load_spec(DEMO), load_model("demo")
    tasks = []
    for task in spec.tasks:
        data = load_task(task, spec.seed)
        head = family.head(data.phrases, task.prompts).to(DEVICE)
        splits = {s: Examples(getattr(data, s), family.preprocess, DEVICE) for s in ("train", "validation", "test")}
        tasks.append(
            Learner(
                task.name,
                lambda x, head=head: family.logits(x, head),
                lambda split, index, splits=splits: splits[split].batch(index),
                {s: len(e) for s, e in splits.items()},
            )
        )
    layout = layout_of(family)
    family.module.to(DEVICE)
    return Subject(
        "demo", family.module, layout, tasks, spec.train, spec.baseline.lr, spec.calibration.samples_per_task
    )


def drawn(name: str, steps: int, batch: int) -> Subject:
    """A large model with random weights, and four tasks of ten classes: an input of a class is its pattern under noise."""
    made = {"ViT-B/32": tower, "BERT-base": bert}[name]()
    logits, tasks = classifier(made), []
    for number in range(4):
        torch.manual_seed(number)
        patterns, sizes = made.draw(10), {"train": steps * batch, "validation": 512, "test": 512}

        def drawing(split: str, index: torch.Tensor, patterns=patterns, number=number) -> tuple:
            torch.manual_seed(derive_seed(number, split, *index[:2].tolist()))
            labels = (index % 10).to(DEVICE)
            noise, clean = made.draw(len(index)), patterns[labels]
            mixed = clean + noise if clean.is_floating_point() else torch.where(torch.rand_like(clean.float()) < 0.5, clean, noise)  # fmt: skip
            return mixed, labels

        tasks.append(Learner(f"drawn {number}", logits, drawing, sizes))
    train = Train(steps=steps, batch_size=batch, lr=1e-4, warmup_steps=steps // 10)
    return Subject(name, made.module, eligible_layout(made.module), tasks, train, 1e-5, 256)


def calibrate(subject: Subject) -> Mask:
    params = dict(subject.module.named_parameters())
    base = {n: params[n].detach().clone() for n in subject.layout.names}
    flags, checked = None, None
    for r in range(1, ROUNDS + 1):
        if flags is not None:
            with torch.no_grad():
                for n, keep in subject.layout.split(flags.to(DEVICE)).items():
                    params[n].mul_(torch.where(keep.view(params[n].shape), 1.0, DAMPING))
        mean = torch.zeros(subject.layout.total, device=DEVICE)
        for task in subject.tasks:
            scores = SquaredGradients(subject.module, subject.layout, checked, autocast=CAST)
            generator = torch.Generator().manual_seed(derive_seed(0, task.name, "labels", r))
            for index in torch.arange(min(subject.samples, task.sizes["train"])).split(64):
                scores.add(task.logits, task.batch("train", index)[0], generator)
            checked = scores.checked
            mean += scores.sums / scores.sums.sum()
        with torch.no_grad():
            for n, b in base.items():
                params[n].copy_(b)
        flags = select(subject.layout, "least_sensitive", round_keep(KEEP, r, ROUNDS), scores=mean.cpu())
    return mask_from_flags(subject.layout, flags)


def learn(subject: Subject, mask: Mask, lr: float, base: str) -> tuple[list, float]:
    """Deltas of all tasks, each trained from the base, and the seconds of their steps alone."""
    deltas, spent, s = [], 0.0, subject.train
    for task in subject.tasks:
        before, optimizer = gather(subject.module, mask), SparseAdamW(subject.module, mask, lr)
        plan = Plan(task.name, task.sizes["train"], s.steps, s.batch_size, lr, s.warmup_steps, 0)

        def train(task=task, plan=plan, optimizer=optimizer) -> None:
            finetune(optimizer, plan, task.logits, lambda i: task.batch("train", i), autocast=CAST)

        spent += seconds(train)
        dtype = torch.bfloat16 if mask.k < subject.layout.total else torch.float32
        deltas.append(make_delta(task.name, optimizer.values.detach(), before, base, mask.fingerprint, dtype, {}))
        optimizer.values.data.copy_(before)
        optimizer.push()
        optimizer.close()
    return deltas, spent


@torch.no_grad()
def accuracy(task: Learner, split: str) -> float:
    right = 0
    for index in torch.arange(task.sizes[split]).split(256):
        inputs, labels = task.batch(split, index)
        right += int((task.logits(inputs).argmax(-1) == labels).sum())
    return right / task.sizes[split]


def mean_accuracy(subject: Subject, split: str) -> float:
    return sum(accuracy(t, split) for t in subject.tasks) / len(subject.tasks)


def measured(subject: Subject) -> Iterator[tuple[str, str, float, float]]:
    """(stage, what it gave, seconds, peak of the GPU's memory in MB)."""
    found = []

    def stage(name: str, work: Callable[[], str]) -> tuple[str, str, float, float]:
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        spent = seconds(lambda: found.append(work()))
        peak = torch.cuda.max_memory_allocated() / 1e6 if DEVICE.type == "cuda" else float("nan")
        return name, found[-1], spent, peak

    state = dict(subject.module.state_dict())
    base, kept = fingerprint(state), {}

    def calibration() -> str:
        kept["mask"] = calibrate(subject)
        return f"{kept['mask'].k:,} of {subject.layout.total:,} weights; base {'intact' if fingerprint(state) == base else 'CHANGED'}"

    yield stage(f"calibrate, {ROUNDS} rounds", calibration)
    yield stage("zero-shot", lambda: f"test accuracy {mean_accuracy(subject, 'test'):.3f}")
    every = mask_from_flags(subject.layout, torch.ones(subject.layout.total, dtype=torch.bool))
    for name, mask, lr in (("sparse", kept["mask"], subject.train.lr), ("dense", every, subject.dense_lr)):
        steps = len(subject.tasks) * subject.train.steps

        def training(name=name, mask=mask, lr=lr, steps=steps) -> str:
            kept[name], spent = learn(subject, mask, lr, base)
            stored = sum(d.values.nbytes for d in kept[name]) / 1e6
            return f"{1e3 * spent / steps:.2f} ms a step of {subject.train.batch_size}; deltas {stored:.1f} MB"

        def merging(name=name, mask=mask) -> str:
            composer, tried = Composer(subject.module, mask, kept[name], base), {}
            for i in range(POINTS):
                alpha = i / (POINTS - 1)
                composer.compose({d.task: alpha for d in kept[name]})
                tried[alpha] = mean_accuracy(subject, "validation")
            best = max(tried, key=tried.get)
            composer.compose({d.task: best for d in kept[name]})
            merged = mean_accuracy(subject, "test")
            composer.rollback()
            intact = "the base, bitwise" if fingerprint(state) == base else "CHANGED"
            return f"test accuracy {merged:.3f} at {best:g}; rolled back: {intact}"

        yield stage(f"train, {name}", training)
        yield stage(f"merge, {name}, {POINTS} points", merging)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects = {
        "demo": demo,
        "vit": lambda: drawn("ViT-B/32", args.steps, args.batch),
        "bert": lambda: drawn("BERT-base", args.steps, args.batch),
    }
    parser.add_argument("--only", nargs="+", choices=tuple(subjects), default=tuple(subjects))
    parser.add_argument("--steps", type=int, default=50, help="of the large models, a task")
    parser.add_argument("--batch", type=int, default=128, help="of the large models")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that the weights are random
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    table, rows = Table("model", "stage", "result", "s", "peak MB", title=f"torch {torch.__version__}, {device}"), []
    started = time.perf_counter()
    for name in args.only:
        subject = subjects[name]()
        for stage, result, spent, peak in measured(subject):
            rows.append({"model": subject.name, "stage": stage, "result": result, "seconds": spent, "peak_mb": peak})
            table.add_row(subject.name, stage, result, f"{spent:.2f}", f"{peak:.0f}")
            print(f"{time.perf_counter() - started:6.1f} s  {subject.name}: {stage}: {result}", flush=True)
    Console(width=150).print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
