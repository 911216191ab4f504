"""What the core costs beside what a user could pick instead: `python jobs/benchmark.py [--quick] [--json FILE]`.

Every figure is measured here, side by side in one run: ours and the other alternate, so that a machine that slows
down slows both. Weights are random, which speed does not depend on; shapes are those of open_clip's ViT-B/32 image
tower. Runs on a GPU where there is one, and needs no ray.
"""

import argparse
import gc
import json
import logging
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import open_clip
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.fisher import Checked, SquaredGradients
from talos_ray.core.layout import Layout, eligible_layout
from talos_ray.core.mask import Mask, mask_from_flags, select
from talos_ray.core.optimizer import SparseAdamW

TASKS, KEEP, CLASSES = 8, 0.1, 100
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is other / ours where more is better (bar '>='), ours / other where less is ('<=')."""

    name: str
    ours: float
    other: float
    ratio: float
    unit: str
    against: str
    repeats: int
    spread: float  # (slowest - fastest) / median of ours
    bar: str
    holds: bool


def row(name: str, ours: list[float], other: list[float], unit: str, against: str, bar: str) -> Row:
    a, b = statistics.median(ours), statistics.median(other)
    sign, limit = bar.split()
    ratio = b / a if sign == ">=" else a / b
    holds = ratio >= float(limit) if sign == ">=" else ratio <= float(limit)
    return Row(
        name,
        a,
        b,
        round(ratio, 3),
        unit,
        against,
        len(ours),
        round((max(ours) - min(ours)) / a, 3) if a else 0.0,
        bar,
        holds,
    )


def seconds(work: Callable[[], object]) -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(repeats: int, *works: Callable[[], object]) -> list[list[float]]:
    """Times of each work in ms, alternating, after one round that is not counted."""
    times: list[list[float]] = [[] for _ in works]
    for i in range(repeats + 1):
        for work, kept in zip(works, times, strict=True):
            spent = seconds(work) * 1e3
            if i:
                kept.append(spent)
    return times


def tower() -> nn.Module:
    torch.manual_seed(0)
    return open_clip.create_model("ViT-B-32", pretrained=None).visual.to(DEVICE).eval()


def masks(layout: Layout) -> dict[str, Mask]:
    """The layouts a mask can have: whole rows, whole matrices (clustered), single weights anywhere (scattered)."""
    flags, left = torch.zeros(layout.total, dtype=torch.bool), round(KEEP * layout.total)
    for name, part in layout.split(flags).items():
        if name.endswith("in_proj_weight") and part.numel() <= left:
            part[:] = True
            left -= part.numel()
    return {
        "rows": mask_from_flags(layout, select(layout, "random", KEEP, granularity="row")),
        "clustered": mask_from_flags(layout, flags),
        "scattered": mask_from_flags(layout, select(layout, "random", KEEP)),
    }


def paper_mask(module: nn.Module, layout: Layout, head: torch.Tensor) -> Mask:
    scores = SquaredGradients(module, layout)
    images = torch.randn(16, 3, 224, 224, device=DEVICE)
    scores.add(lambda x: F.normalize(module(x), dim=-1) @ head, images, torch.Generator().manual_seed(0))
    return mask_from_flags(layout, select(layout, "least_sensitive", KEEP, scores=scores.sums.cpu()))


# ------------------------------------------------------------------------------------------- composing


def compose(repeats: int) -> Iterator[Row]:
    module = tower()
    layout = eligible_layout(module)
    params = dict(module.named_parameters())
    base = {n: params[n].detach().clone() for n in layout.names}
    dense = [{n: torch.randn_like(b) * 1e-3 for n, b in base.items()} for _ in range(TASKS)]
    settings = [[0.1 + 0.05 * t for t in range(TASKS)], [0.5 - 0.05 * t for t in range(TASKS)]]
    turn = [0]

    def alphas() -> list[float]:
        turn[0] += 1
        return settings[turn[0] % 2]

    @torch.no_grad()
    def dense_in_place() -> None:
        a = alphas()
        for n, b in base.items():
            params[n].copy_(b)
            for alpha, delta in zip(a, dense, strict=True):
                params[n].add_(delta[n], alpha=alpha)

    @torch.no_grad()
    def dictionaries() -> None:
        merged, a = {n: b.clone() for n, b in base.items()}, alphas()
        for alpha, delta in zip(a, dense, strict=True):
            scaled = {n: alpha * d for n, d in delta.items()}
            merged = {n: merged[n] + scaled[n] for n in merged}
        module.load_state_dict(merged, strict=False)

    for kind, mask in masks(layout).items():
        with torch.no_grad():
            for n, b in base.items():
                params[n].copy_(b)
        flat = [torch.cat([d[n].view(-1)[i.to(DEVICE)] for n, i in mask.indices.items()]).bfloat16() for d in dense]
        composer = Composer(module, mask, [Delta(str(t), v, "b", mask.fingerprint) for t, v in enumerate(flat)], "b")

        def ours(composer=composer) -> None:
            composer.compose({str(t): a for t, a in enumerate(alphas())})

        @torch.no_grad()
        def with_copy(composer=composer) -> None:
            for n, b in base.items():
                params[n].copy_(b)
            composer.compose({str(t): a for t, a in enumerate(alphas())})

        print(
            f"compose, {kind}: largest difference from the same sum in float64 is {difference(composer, base, flat, mask, params):.1e}"
        )
        bars = {"rows": (">= 13", ">= 65"), "clustered": (">= 8", ">= 40"), "scattered": (">= 5", ">= 5")}[kind]
        suffix = "" if kind == "rows" else f"_{kind}"
        a, b, c, d = side_by_side(repeats, ours, dense_in_place, dictionaries, with_copy)
        yield row(f"compose_inplace_vs_dense_inplace{suffix}", a, b, "ms", "dense task arithmetic in place", bars[0])
        yield row(f"compose_inplace_vs_dicts{suffix}", a, c, "ms", "dense task arithmetic as dictionaries", bars[1])
        yield row(
            f"compose_copy_vs_dense{suffix}", d, b, "ms", "dense in place; ours with a copy of the whole base", ">= 4"
        )
        if kind == "rows":
            stored = sum(v.nbytes for v in flat) + mask.bits.nbytes
            yield row(
                "storage_vs_dense",
                [stored / 1e6],
                [TASKS * sum(b.nbytes for b in base.values()) / 1e6],
                "MB",
                "dense float32 checkpoints",
                ">= 18",
            )


@torch.no_grad()
def difference(composer: Composer, base, flat, mask: Mask, params) -> float:
    weights = [0.1 + 0.05 * t for t in range(TASKS)]
    composer.compose({str(t): a for t, a in enumerate(weights)})
    start = torch.cat([base[n].view(-1)[i.to(DEVICE)] for n, i in mask.indices.items()]).double()
    wanted = start + sum(a * v.double() for a, v in zip(weights, flat, strict=True))
    found = torch.cat([params[n].detach().view(-1)[i.to(DEVICE)] for n, i in mask.indices.items()]).double()
    return float((found - wanted).abs().max())


# ------------------------------------------------------------------------------------------- training


def stepper(kind: str, batch: int) -> tuple[Callable[[], None], object]:
    """One training step of the tower under a mask ('dense' is AdamW on all eligible weights), and its optimizer."""
    module = tower()
    layout, head = eligible_layout(module), F.normalize(torch.randn(512, CLASSES, device=DEVICE), dim=0) * 100
    images, labels = torch.randn(batch, 3, 224, 224, device=DEVICE), torch.randint(CLASSES, (batch,), device=DEVICE)
    if kind == "dense":
        wanted = [p for n, p in module.named_parameters() if n in set(layout.names)]
        for p in module.parameters():
            p.requires_grad_(any(p is w for w in wanted))
        optimizer = torch.optim.AdamW(wanted, lr=1e-5, fused=True)
    elif kind != "forward":
        mask = paper_mask(module, layout, head) if kind == "paper" else masks(layout)[kind]
        optimizer = SparseAdamW(module, mask, lr=1e-5)
    else:
        optimizer = None

    def step() -> None:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=DEVICE.type == "cuda"):
            logits = F.normalize(module(images), dim=-1) @ head
        loss = F.cross_entropy(logits.float(), labels)
        if optimizer is None:
            return
        loss.backward()
        if kind == "dense":
            torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        optimizer.step()
        if kind == "dense":
            optimizer.zero_grad()

    return step, optimizer


def steps(repeats: int, batch: int, suffix: str = "") -> Iterator[Row]:
    """A small batch, where the optimizer weighs most, and with a `suffix` a large one, where only the products do."""
    dense, adam = stepper("dense", batch)
    for kind, name, bar in (
        ("rows", "", "<= 0.65"),
        ("paper", "_paper_mask", "<= 0.75"),
        ("scattered", "_random_elements", "<= 1.0"),
    ):
        step, optimizer = stepper(kind, batch)
        a, b = side_by_side(repeats, step, dense)
        yield row(f"step_time_vs_dense{name}{suffix}", a, b, "ms", f"dense AdamW step, batch {batch}", bar)
        if kind == "rows" and not suffix:
            state = sum(t.nbytes for s in adam.state.values() for t in s.values()) / 1e6
            ours = sum(t.nbytes for n, t in optimizer.state().items() if n != "values") / 1e6
            yield row("optimizer_state_vs_dense", [ours], [state], "MB", "AdamW's moments", "<= 0.15")
            sent = sum(p.nbytes for group in adam.param_groups for p in group["params"]) / 1e6
            yield row(
                "allreduce_bytes_vs_ddp",
                [optimizer.values.grad.nbytes / 1e6],
                [sent],
                "MB",
                "gradients that DDP sends a step",
                "<= 0.11",
            )
        del step, optimizer
        gc.collect()


def peaks() -> Iterator[Row]:
    """Peak memory of two steps, each in a process of its own, less that of a forward pass with the same model."""

    def peak(kind: str) -> float:
        done = subprocess.run([sys.executable, __file__, "--peak", kind], capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    ground = peak("forward")
    for kind, name in (("rows", ""), ("scattered", "_random_elements")):
        yield row(
            f"grad_and_state_vs_dense{name}",
            [peak(kind) - ground],
            [peak("dense") - ground],
            "MB",
            "peak of two dense steps above a forward pass",
            "<= 0.25",
        )


def measure_peak(kind: str) -> None:
    torch.set_num_threads(1)
    step, _ = stepper(kind, 2)
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of building the model (Linux)
    for _ in range(2):
        step()
    if DEVICE.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e6)
    else:
        print(float(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3)


# ------------------------------------------------------------------------------------------- calibration


def calibration(repeats: int, batch: int) -> Iterator[Row]:
    module = tower()
    layout, head = eligible_layout(module), F.normalize(torch.randn(512, CLASSES, device=DEVICE), dim=0) * 100
    images, labels = torch.randn(batch, 3, 224, 224, device=DEVICE), torch.randint(CLASSES, (batch,), device=DEVICE)
    wanted = [p for n, p in module.named_parameters() if n in set(layout.names)]
    scores = SquaredGradients(module, layout, Checked())
    few = min(4, batch)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return F.normalize(module(x), dim=-1) @ head

    def ours() -> None:
        scores.add(forward, images, torch.Generator().manual_seed(0))

    def loop() -> None:
        for i in range(few):
            for g in torch.autograd.grad(F.cross_entropy(forward(images[i : i + 1]), labels[i : i + 1]), wanted):
                g.square_()

    def plain() -> None:
        torch.autograd.grad(F.cross_entropy(forward(images), labels), wanted)

    a, b, c = side_by_side(repeats, ours, loop, plain)
    b = [t * batch / few for t in b]
    on = "GPU" if DEVICE.type == "cuda" else "CPU"
    yield row(
        "calibration_vs_loop", a, b, "ms", f"one backward a sample, {batch} samples", ">= 10" if on == "GPU" else ">= 1"
    )
    yield row(
        "calibration_vs_forward_backward", a, c, "ms", f"forward and backward of the same samples, {on}", "<= 1.6"
    )


def roofline(repeats: int) -> None:
    """What the machine can do: the speed of a copy and of a product, to read the table by."""
    a, b = torch.randn(1 << 25, device=DEVICE), torch.empty(1 << 25, device=DEVICE)
    (copy,) = side_by_side(repeats, lambda: b.copy_(a))
    m = torch.randn(2048, 2048, device=DEVICE)
    (product,) = side_by_side(repeats, lambda: m @ m)
    print(
        f"copy {2 * a.nbytes / statistics.median(copy) / 1e6:.1f} GB/s, float32 product {2 * 2048**3 / statistics.median(product) / 1e6:.0f} GFLOP/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 repeats instead of 7, and no large batch")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that the weights are random
    if args.peak:
        return measure_peak(args.peak)
    repeats = 3 if args.quick else 7
    small, large = (4, 16) if DEVICE.type == "cpu" else (32, 256)
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {name}, {repeats} repeats")
    roofline(repeats)
    rows = []
    parts = [compose(repeats), steps(repeats, small), peaks(), calibration(repeats, large)]
    if not args.quick:
        parts.append(steps(repeats, large, "_large_batch"))
    for part in parts:
        for found in part:
            rows.append(found)
            print(f"  {found.name}: {found.ratio} ({found.bar})", flush=True)
    table = Table("name", "ours", "other", "unit", "ratio", "bar", "holds", "spread", "against")
    for r in rows:
        table.add_row(
            r.name,
            f"{r.ours:.1f}",
            f"{r.other:.1f}",
            r.unit,
            f"{r.ratio:g}",
            r.bar,
            "yes" if r.holds else "NO",
            f"{r.spread:.0%}",
            r.against,
        )
    Console(width=180).print(table)
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
