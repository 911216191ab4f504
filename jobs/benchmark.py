"""What the core costs beside what a user could pick instead: `python jobs/benchmark.py [--quick] [--json FILE]`.

Every figure is measured here, side by side in one run: ours and the other alternate, so that a machine that slows
down slows both. Weights are random, which speed does not depend on; shapes are those of open_clip's ViT-B/32 image
tower and of BERT-base. Runs on a GPU where there is one, and needs no ray; only `--run`, which looks at a finished
run, does. `--peers` installs other packages, each into a virtual environment of its own, and compares with them.
"""

import argparse
import ctypes
import gc
import json
import logging
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from jobs.measuring import DEVICE, TASKS, Row, row, side_by_side
from jobs.subjects import CLASSES, Subject, bert, classifier, mask_of, paper_mask, tower
from talos_ray.core.blocks import gather
from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.fisher import Checked, SquaredGradients
from talos_ray.core.layout import eligible_layout
from talos_ray.core.learned import LearnedCoefficients
from talos_ray.core.mask import Mask, smallest
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.core.replay import AS_IT_IS, Replay
from talos_ray.core.segments import Blend, segments_of
from talos_ray.models import Family
from talos_ray.serving.switch import Switch
from talos_ray.trust.recompose import Edit


def compose(repeats: int, subject: Subject, kinds: tuple[str, ...], word: str = "") -> Iterator[Row]:
    """In place, with a copy of the base before it, and three ways of dense task arithmetic; `word` ends the rows' names."""
    module = subject.module
    layout = eligible_layout(module)
    params = dict(module.named_parameters())
    base = {n: params[n].detach().clone() for n in layout.names}
    dense = [{n: torch.randn_like(b) * 1e-3 for n, b in base.items()} for _ in range(TASKS)]
    turn = [0]

    def alphas() -> list[float]:
        turn[0] += 1  # never the same twice: composing what is there already costs nothing
        return [0.1 + 0.05 * t + 0.001 * (turn[0] % 97) for t in range(TASKS)]

    @torch.no_grad()
    def dense_in_place() -> None:
        a = alphas()
        for n, b in base.items():
            params[n].copy_(b)
            for alpha, delta in zip(a, dense, strict=True):
                params[n].add_(delta[n], alpha=alpha)

    flat_base, flat_out = (torch.cat([b.view(-1) for b in base.values()]) for _ in range(2))
    flat_deltas = [torch.cat([d.view(-1) for d in delta.values()]) for delta in dense]

    def flat_vectors() -> None:
        flat_out.copy_(flat_base)
        for alpha, delta in zip(alphas(), flat_deltas, strict=True):
            flat_out.add_(delta, alpha=alpha)

    @torch.no_grad()
    def dictionaries() -> None:
        merged, a = {n: b.clone() for n, b in base.items()}, alphas()
        for alpha, delta in zip(a, dense, strict=True):
            scaled = {n: alpha * d for n, d in delta.items()}
            merged = {n: merged[n] + scaled[n] for n in merged}
        module.load_state_dict(merged, strict=False)

    for kind in kinds:
        mask = mask_of(kind, layout)
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
            f"compose{word}, {kind}: largest difference from the same sum in float64 is {difference(composer, module, flat, mask):.1e}"
        )
        bars = {"rows": (">= 13", ">= 65"), "clustered": (">= 8", ">= 40"), "scattered": (">= 5", ">= 5")}[kind]
        suffix = word + ("" if kind == "rows" else f"_{kind}")
        # What must move at least: every delta and the base's values in, the result out. A copy moves as much twice over.
        bytes_moved = sum(v.nbytes for v in flat) + 2 * mask.k * 4
        source, sink = (torch.empty(bytes_moved // 2, dtype=torch.uint8, device=DEVICE) for _ in range(2))
        a, b, c, d, e, least, whole = side_by_side(
            repeats,
            ours,
            dense_in_place,
            dictionaries,
            with_copy,
            flat_vectors,
            lambda source=source, sink=sink: sink.copy_(source),
            lambda: flat_out.copy_(flat_base),
        )
        limit, copy = statistics.median(least), statistics.median(whole)
        print(f"  at least {bytes_moved / 1e6:.0f} MB move: {limit:.1f} ms as a copy; the whole base: {copy:.1f} ms")
        segments = segments_of(mask, "row")
        by_row = Composer(module, mask, list(composer.deltas.values()), "b", segments)

        def a_row_each(by_row=by_row, count=segments.count) -> None:
            by_row.compose({str(t): torch.full((count,), a, device=DEVICE) for t, a in enumerate(alphas())})

        f, g = side_by_side(repeats, a_row_each, ours)
        yield row(f"compose_by_row_vs_by_task{suffix}", f, g, "ms", "ours with one coefficient a task", "<= 1.3")
        yield row(f"compose_inplace_vs_dense_inplace{suffix}", a, b, "ms", "dense in place, tensor by tensor", bars[0])
        yield row(f"compose_inplace_vs_flat_vectors{suffix}", a, e, "ms", "dense in place, as flat vectors", bars[0])
        yield row(f"compose_inplace_vs_dicts{suffix}", a, c, "ms", "dense task arithmetic as dictionaries", bars[1])
        yield row(
            f"compose_copy_vs_dense{suffix}", d, b, "ms", "dense in place; ours with a copy of the whole base", ">= 4"
        )
        if kind == "rows" and not word:
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
def switches(repeats: int, subject: Subject) -> Iterator[Row]:
    """A served model's change from one edit to another, p50 of many at random, beside loading the other one's whole state."""
    module = subject.module
    layout = eligible_layout(module)
    mask = mask_of("rows", layout)
    with torch.no_grad():
        base = {n: p.detach().clone() for n, p in module.named_parameters()}
    edits = {}
    for task in range(TASKS):
        values = (1e-3 * torch.randn(mask.k)).bfloat16()
        rows = {"t": Delta("t", values, "b", mask.fingerprint)}
        edits[task] = Edit(mask=mask, rows=rows, blend=Blend({"t": 1.0}))
    switch = Switch(cast("Family", SimpleNamespace(module=module)), "b")
    states = {}
    for task, edit in edits.items():  # both hold every edit from here on
        switch.to(task, lambda edit=edit: edit)
        states[task] = {n: p.detach().clone() for n, p in module.named_parameters()}
    draw = random.Random(0)
    order = [draw.randrange(TASKS)]
    for _ in range(32 * repeats):
        order.append(draw.choice([task for task in edits if task != order[-1]]))
    ours, turns = iter(order), iter(order)
    a, b = side_by_side(
        len(order) - 1,
        lambda: switch.to(next(ours), lambda: edits[0]),
        lambda: module.load_state_dict(states[next(turns)], strict=False),
    )
    with torch.no_grad():
        module.load_state_dict(base, strict=False)
    yield row("serve_switch_vs_load_state", a, b, "ms", "load_state_dict of a whole edited model in memory", ">= 1")


def difference(composer: Composer, module: nn.Module, flat: list[torch.Tensor], mask: Mask) -> float:
    weights = [0.1 + 0.05 * t for t in range(TASKS)]
    composer.compose({str(t): a for t, a in enumerate(weights)})
    wanted = composer.base.double() + sum(a * v.double() for a, v in zip(weights, flat, strict=True))
    found = gather(module, mask).double()
    return float((found - wanted).abs().max())


# ------------------------------------------------------------------------------------------- training


def stepper(
    build: Callable[[], Subject], kind: str, batch: int, compiled: bool = False
) -> tuple[Callable[[], None], object]:
    """One training step under a mask, and its optimizer.

    `kind` may also be 'dense', 'dense_fused' or 'dense_replayed' (AdamW on all eligible weights, with torch's defaults, fused, or
    fused and on a GPU recorded as ours is), 'floor' (forward and input gradients alone: what no mask can avoid) or 'forward'.
    """
    subject = build()
    module, layout = subject.module, eligible_layout(subject.module)
    logits, inputs = classifier(subject), subject.draw(batch)
    logits = torch.compile(logits) if compiled else logits
    labels = torch.randint(CLASSES, (batch,), device=DEVICE)
    optimizer, wanted = None, []
    if kind in ("forward", "floor"):
        for n, p in module.named_parameters():
            p.requires_grad_(n == subject.lowest and kind == "floor")
    elif kind.startswith("dense"):
        for n, p in module.named_parameters():
            p.requires_grad_(n in set(layout.names))
        wanted = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(wanted, lr=1e-5, fused=None if kind == "dense" else True)
    else:
        mask = paper_mask(subject, layout) if kind == "paper" else mask_of(kind, layout)
        optimizer = SparseAdamW(module, mask, lr=1e-5)

    def work(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=DEVICE.type == "cuda"):
            out = logits(inputs)
        loss = F.cross_entropy(out.float(), labels)
        if kind != "forward":
            loss.backward()
        return loss.detach()

    run, replayed = work, kind == "dense_replayed"
    if replayed:
        for p in wanted:
            p.grad = torch.zeros_like(p)
    if replayed or isinstance(optimizer, SparseAdamW):  # as `core.finetune` does it
        run = Replay(work, [p.grad for p in wanted] or [optimizer.values.grad])

    def step() -> None:
        run(inputs, labels)
        if wanted:
            torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        if optimizer is not None:
            optimizer.step()
        if wanted:
            optimizer.zero_grad(set_to_none=not replayed)

    return step, optimizer


STEPS = (  # mask, ending of the rows' names, bar against AdamW with torch's defaults
    ("rows", "", "<= 0.65"),
    ("query_key", "_query_key", "<= 0.75"),
    ("paper", "_paper_mask", "<= 0.75"),
    ("scattered", "_random_elements", "<= 1.0"),
)


def steps(
    repeats: int, build: Callable[[], Subject], batch: int, kinds: tuple[str, ...], word: str = ""
) -> Iterator[Row]:
    """Beside AdamW as torch makes it by default and beside its fused form, the fastest there is."""
    dense, adam = stepper(build, "dense", batch)
    fused, _ = stepper(build, "dense_fused", batch)
    replayed = [stepper(build, "dense_replayed", batch)[0]] if DEVICE.type == "cuda" else []
    floor, _ = stepper(build, "floor", batch)
    for kind, name, bar in (s for s in STEPS if s[0] in kinds):
        step, optimizer = stepper(build, kind, batch)
        for _ in range(AS_IT_IS if replayed else 0):  # what is recorded is so before it is timed
            for run in (step, *replayed):
                run()
        a, b, c, d, *e = side_by_side(repeats, step, dense, fused, floor, *replayed)
        yield row(f"step_time_vs_dense{name}{word}", a, b, "ms", f"dense AdamW step, batch {batch}", bar)
        yield row(f"step_time_vs_fused{name}{word}", a, c, "ms", f"dense step, fused AdamW, batch {batch}", bar)
        for times in e:
            yield row(f"step_time_vs_replayed{name}{word}", a, times, "ms", f"dense step, fused AdamW, recorded too, batch {batch}", bar)  # fmt: skip
        least = statistics.median(d)
        print(
            f"  forward and input gradients alone: {least:.0f} ms, {least / statistics.median(b):.2f} of the dense step"
        )
        if kind == "rows" and not word:
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
        optimizer.close()
        del step, optimizer
        gc.collect()


def learning(repeats: int, batch: int) -> Iterator[Row]:
    """A step of the learned merge of 8 tasks, a coefficient a row, against a training step of as many samples under the same mask;
    and what it holds beside the deltas."""
    train, _ = stepper(tower, "rows", batch)
    learn, learner = merger(batch)
    a, b = side_by_side(repeats, learn, train)
    yield row("learning_step_vs_training_step", a, b, "ms", f"a sparse training step, batch {batch}", "<= 1.2")
    held = sum(v.nbytes for v in learner.state().values()) + learner.gradient.flat.nbytes + learner.composer.base.nbytes
    deltas_there = sum(d.values.nbytes for d in learner.composer.deltas.values())
    copies = sum(v.nbytes for t, v in learner.composer.values.items() if v.data_ptr() != learner.composer.deltas[t].values.data_ptr())  # fmt: skip
    print(f"  deltas {deltas_there / 1e6:.0f} MB, copied {copies / 1e6:.0f} MB; beside them {held / 1e6:.0f} MB")
    yield row("learning_memory_vs_deltas", [held / 1e6], [deltas_there / 1e6], "MB", "the deltas of 8 tasks", "<= 1.0")
    learner.close()


def merger(batch: int) -> tuple[Callable[[], None], LearnedCoefficients]:
    """One step of the learned merge of 8 tasks, a coefficient a row, and its learner."""
    subject = tower()
    mask = mask_of("rows", eligible_layout(subject.module))
    deltas = [Delta(str(t), (1e-3 * torch.randn(mask.k)).bfloat16(), "b", mask.fingerprint) for t in range(TASKS)]
    learner = LearnedCoefficients(subject.module, mask, deltas, segments_of(mask, "row"), "b", 0.3)
    logits, inputs = classifier(subject), subject.draw(batch)
    labels = torch.randint(CLASSES, (batch,), device=DEVICE)

    def learn() -> None:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=DEVICE.type == "cuda"):
            out = logits(inputs)
        F.cross_entropy(out.float(), labels).backward()
        learner.step(1e-3)

    return learn, learner


def compiled_steps(repeats: int, batch: int) -> Iterator[Row]:
    """The same steps with and without `torch.compile`."""
    for kind in ("dense_fused", "rows", "query_key"):
        ours, other = (stepper(tower, kind, batch, compiled)[0] for compiled in (True, False))
        a, b = side_by_side(repeats, ours, other)
        yield row(f"step_time_compiled_{kind}", a, b, "ms", f"the same step as it is, batch {batch}", "<= 1.0")


def peaks() -> Iterator[Row]:
    """Peak memory of a few steps, each in a process of its own, less that of a forward pass with the same model."""

    def peak(kind: str) -> float:
        done = subprocess.run([sys.executable, __file__, "--peak", kind], capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    if DEVICE.type == "cpu":
        yield row("select_peak_vs_scores", [peak("select")], [SCORES * 4 / 1e6], "MB", "bytes of the scores", "<= 1.3")

    ground = peak("forward")
    for kind, name in (("rows", ""), ("scattered", "_random_elements")):
        yield row(
            f"grad_and_state_vs_dense{name}",
            [peak(kind) - ground],
            [peak("dense") - ground],
            "MB",
            "peak of dense steps above a forward pass",
            "<= 0.25",
        )
    deltas = TASKS * mask_of("rows", eligible_layout(tower().module)).k * 2 / 1e6
    yield row(
        "learning_peak_vs_deltas",
        [peak("learning") - peak("rows")],
        [deltas],
        "MB",
        "the deltas of 8 tasks; ours: peak of learning their merge above that of training one, deltas included",
        "<= 2.0",
    )


SCORES = 200_000_000


def measure_peak(kind: str) -> None:
    torch.set_num_threads(1)
    if kind == "select":
        smallest(torch.rand(1 << 22), 1000)  # what the libraries need once
        ground, scores = resident("VmRSS"), torch.rand(SCORES)
        Path("/proc/self/clear_refs").write_text("5")
        smallest(scores, SCORES // 10)
        return print(resident("VmHWM") - ground)
    step, _ = merger(2) if kind == "learning" else stepper(tower, kind, 2)
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        # What building the model has freed goes back, and its peak is forgotten (Linux).
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2 if DEVICE.type == "cpu" else AS_IT_IS + 2):
        step()
    if DEVICE.type == "cuda":
        print(torch.cuda.max_memory_reserved() / 1e6)  # a recording's memory counts as reserved only
    else:
        print(resident("VmHWM"))


def resident(word: str) -> float:
    """MB of this process's resident set: VmRSS now, VmHWM at its highest (Linux)."""
    return int(re.search(rf"{word}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3


# ------------------------------------------------------------------------------------------- calibration


def calibration(repeats: int, batch: int) -> Iterator[Row]:
    subject = tower()
    module, layout, forward = subject.module, eligible_layout(subject.module), classifier(subject)
    images, labels = subject.draw(batch), torch.randint(CLASSES, (batch,), device=DEVICE)
    wanted = [p for n, p in module.named_parameters() if n in set(layout.names)]
    cast = torch.bfloat16 if DEVICE.type == "cuda" else None
    scores = SquaredGradients(module, layout, Checked(), autocast=cast)
    few = min(4, batch)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE.type, dtype=cast, enabled=cast is not None):
            out = forward(x)
        return F.cross_entropy(out.float(), y)

    def ours() -> None:
        scores.add(forward, images, torch.Generator().manual_seed(0))

    def loop() -> None:
        for i in range(few):
            for g in torch.autograd.grad(loss(images[i : i + 1], labels[i : i + 1]), wanted):
                g.square_()

    def plain() -> None:
        torch.autograd.grad(loss(images, labels), wanted)

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
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="FOLDER",
        help="compare with mergekit, fusion-bench and peft, installed under FOLDER",
    )
    parser.add_argument("--compile", action="store_true", help="also training steps through torch.compile (minutes)")
    parser.add_argument("--run", metavar="FOLDER", help="also measure search and orchestration of this finished run")
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="just these parts; a name that there is not lists them"
    )
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that the weights are random
    if args.peak:
        return measure_peak(args.peak)
    repeats = 3 if args.quick else 7
    small, large = (4, 16) if DEVICE.type == "cpu" else (32, 256)
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {name}, {repeats} repeats")
    rows = []
    everything = tuple(kind for kind, _, _ in STEPS)
    parts = {
        "compose": lambda: compose(repeats, tower(), ("rows", "clustered", "scattered")),
        "switches": lambda: switches(repeats, tower()),
        "steps": lambda: steps(repeats, tower, small, everything),
        "learning": lambda: learning(repeats, large),
        "peaks": peaks,
        "calibration": lambda: calibration(repeats, large),
    }
    if not args.quick:
        parts["large"] = lambda: steps(repeats, tower, large, everything, "_large_batch")
        parts["bert"] = lambda: compose(repeats, bert(), ("rows", "scattered"), "_bert")
        parts["bert_steps"] = lambda: steps(repeats, bert, small, ("rows", "scattered"), "_bert")
    if args.peers:
        from jobs.peers.compare import compare

        parts["peers"] = lambda: compare(max(5, repeats), args.peers, tower().module)
    if args.compile:
        parts["compile"] = lambda: compiled_steps(repeats, small)
    if args.run:
        from jobs.finished_run import look

        parts["run"] = lambda: look(args.run)
    if unknown := set(args.only or parts) - set(parts):
        parser.error(f"--only: there is no part {min(unknown)!r}; there are: {', '.join(parts)}")
    roofline(repeats)
    for name in args.only or parts:
        for found in parts[name]():
            rows.append(found)
            print(
                f"  {found.name}: {found.ours:.1f} / {found.other:.1f} {found.unit}: {found.ratio} ({found.bar})",
                flush=True,
            )
            if args.json:  # row by row: a later part that breaks must not cost what was measured
                args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
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


if __name__ == "__main__":
    main()
