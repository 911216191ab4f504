"""Other packages beside ours, on the same files: each in a virtual environment of its own, made on request."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from jobs.measuring import DEVICE, KEEP, TASKS, Row, row, side_by_side
from jobs.peers.ours import Tensors
from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.layout import Layout, eligible_layout
from talos_ray.core.mask import Mask, mask_from_flags, select

HERE = Path(__file__).parent
ALPHA = 0.3


class NotCompared(Exception):
    """Why a peer is not in the table."""


def _last_words(done: subprocess.CompletedProcess) -> str:
    return (done.stderr.strip() or "no word").splitlines()[-1]


def installed(name: str, home: Path) -> Path:
    """The folder of a peer's programs, beside the same torch as ours. Raises NotCompared where it cannot be installed."""
    programs = home / name / "bin"
    if not (home / name / "complete").exists():
        print(f"installing {name} into {home / name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home / name)], check=True)
        pip = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # Not under our constraints: what they pin for us can force a peer's own needs years back.
        same = f"torch=={torch.__version__.partition('+')[0]}"
        done = subprocess.run([*pip, same, name], capture_output=True, text=True)
        if done.returncode:
            raise NotCompared(f"it cannot be installed here: {_last_words(done)}")
        (home / name / "complete").touch()
    return programs


def call(*command: object) -> tuple[float, str]:
    """Wall time (ms) and output of a program. Raises NotCompared with its last words."""
    start = time.perf_counter()
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    spent = (time.perf_counter() - start) * 1e3
    if done.returncode:
        raise NotCompared(f"{Path(command[0]).name} ended with {done.returncode}: {_last_words(done)}")
    return spent, done.stdout


def write_files(module: nn.Module, folder: Path) -> tuple[Mask, list[Delta]]:
    """One base and eight edits of a tenth of its rows, as dense checkpoints and as mask and deltas."""
    layout = eligible_layout(module)
    base = {n: p.detach().cpu().clone() for n, p in module.named_parameters() if n in set(layout.names)}
    mask = mask_from_flags(layout, select(layout, "random", KEEP, granularity="row"))
    torch.manual_seed(0)
    deltas = [
        Delta(f"task{t}", (torch.randn(mask.k) * 1e-3).bfloat16(), "base", mask.fingerprint) for t in range(TASKS)
    ]
    save_file(base, folder / "base.safetensors")
    save_file(mask.packed(), folder / "mask.safetensors")
    save_file({d.task: d.values for d in deltas}, folder / "deltas.safetensors")
    (folder / "coefficients.json").write_text(json.dumps({d.task: ALPHA for d in deltas}))
    tuned = Tensors({n: t.clone() for n, t in base.items()})
    composer = Composer(tuned, mask, deltas, "base")
    for d in deltas:
        composer.compose({d.task: 1.0})
        save_file({n: p.detach() for n, p in tuned.named_parameters()}, folder / f"{d.task}.safetensors")
    models = "".join(
        f"  - model: {folder / d.task}.safetensors\n    parameters:\n      weight: {ALPHA}\n" for d in deltas
    )
    (folder / "mergekit.yaml").write_text(
        f"merge_method: task_arithmetic\nbase_model: {folder / 'base.safetensors'}\nmodels:\n{models}dtype: float32\n"
        "parameters:\n  normalize: false\n"
    )
    return mask, deltas


def difference(ours: dict[str, torch.Tensor], path: Path) -> float:
    theirs = {}
    for file in [path] if path.is_file() else path.glob("*.safetensors"):
        theirs |= load_file(file)
    return max(float((t - theirs[n]).abs().max()) for n, t in ours.items())


def compare(repeats: int, home: Path, module: nn.Module) -> Iterator[Row]:
    """Rows for every peer that can be installed under `home` and runs; a line that says why for one that does not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mask, deltas = write_files(module, folder)
        composer = Composer(module, mask, deltas, "base")
        turn = [0]

        def ours() -> None:
            turn[0] += 1
            composer.compose({d.task: ALPHA - 0.1 * (turn[0] % 2) for d in deltas})

        def merged() -> dict[str, torch.Tensor]:
            composer.compose({d.task: ALPHA for d in deltas})
            return {n: p.detach().cpu() for n, p in module.named_parameters() if n in set(mask.layout.names)}

        for peer, rows in {
            "mergekit": _mergekit(repeats, home, folder, ours, merged),
            "fusion-bench": _fusion_bench(repeats, home, folder, ours, merged),
            "peft": _shira(repeats, home, folder, mask.layout),
        }.items():
            try:
                yield from rows
            except NotCompared as why:
                print(f"{peer}: not compared, {why}", flush=True)


def _mergekit(repeats: int, home: Path, folder: Path, ours, merged) -> Iterator[Row]:
    programs = installed("mergekit", home)
    out, mine, version = folder / "mergekit", folder / "ours.safetensors", _version(programs, "mergekit")
    command = (programs / "mergekit-pytorch", folder / "mergekit.yaml", out)
    parts: dict[str, list[dict]] = {"": [], "--dense": []}

    def from_files(*options: str) -> None:
        parts["".join(options)].append(json.loads(call(sys.executable, HERE / "ours.py", folder, mine, *options)[1]))

    call(*command)
    print(f"{version}: largest difference from ours is {difference(merged(), out):.1e}")
    a, b, c, d, start = side_by_side(
        repeats,
        ours,
        lambda: call(*command),
        from_files,
        lambda: from_files("--dense"),
        lambda: call(programs / "mergekit-pytorch", "--help"),
    )
    # The same bytes through safetensors: about what writing its result costs it.
    base = load_file(folder / "base.safetensors")
    (written,) = side_by_side(repeats, lambda: save_file(base, folder / "written.safetensors"))
    whole, imports, write = (statistics.median(x) for x in (b, start, written))
    print(
        f"  mergekit's command {whole:.0f} ms: start and imports {imports:.0f}, a write of this size {write:.0f}, the rest {whole - imports - write:.0f}"
    )
    for word, times, label in (("", c, "deltas"), ("--dense", d, "dense checkpoints")):
        now = {k: statistics.median(p[k] for p in parts[word][1:]) * 1e3 for k in ("read", "compose", "write")}
        total = statistics.median(times)
        told = ", ".join(f"{k} {v:.0f}" for k, v in now.items())
        print(
            f"  ours from {label} to a file {total:.0f} ms: start and imports {total - sum(now.values()):.0f}, {told}"
        )
    yield row("compose_vs_mergekit", a, b, "ms", f"{version}, its command; ours in place", ">= 200")
    yield row("compose_vs_mergekit_files", c, b, "ms", f"{version}, its command; ours from deltas to a file", ">= 1")
    yield row(
        "compose_vs_mergekit_dense_input", d, b, "ms", f"{version}, its command; ours from the same dense files", ">= 1"
    )


def _fusion_bench(repeats: int, home: Path, folder: Path, ours, merged) -> Iterator[Row]:
    programs = installed("fusion-bench", home)
    out = folder / "fusion.safetensors"
    script = HERE / "fusion_bench_arithmetic.py"
    times = json.loads(call(programs / "python", script, folder, out, repeats)[1].splitlines()[-1])
    version = _version(programs, "fusion-bench")
    print(f"{version}: largest difference from ours is {difference(merged(), out):.1e}")
    (a,) = side_by_side(repeats, ours)
    yield row("compose_vs_fusion_bench", a, times, "ms", f"{version} in process, models in memory", ">= 1")


def _shira(repeats: int, home: Path, folder: Path, layout: Layout) -> Iterator[Row]:
    """The matrices of the tower alone: SHiRA knows linear layers only. Both hold single weights, about a tenth."""
    programs = installed("peft", home)
    shapes = [s for s in layout.shapes if len(s) == 2]
    (folder / "shapes.json").write_text(json.dumps(shapes))
    script = HERE / "peft_shira.py"
    theirs = json.loads(
        call(programs / "python", script, folder / "shapes.json", folder / "shira", repeats)[1].splitlines()[-1]
    )
    version = _version(programs, "peft")
    matrices = Layout(tuple(f"layer{i:03d}" for i in range(len(shapes))), tuple(tuple(s) for s in shapes))
    mask = mask_from_flags(matrices, select(matrices, "random", theirs["weights"] / matrices.total))
    module = Tensors({n: torch.randn(s, device=DEVICE) for n, s in zip(matrices.names, matrices.shapes, strict=True)})
    values = [(torch.randn(mask.k) * 1e-3).bfloat16() for _ in range(2)]
    composer = Composer(
        module, mask, [Delta(t, v, "b", mask.fingerprint) for t, v in zip("ab", values, strict=True)], "b"
    )
    turn = [0]

    def swap() -> None:
        turn[0] += 1
        composer.compose({"ab"[turn[0] % 2]: 1.0})

    (times,) = side_by_side(repeats, swap)
    stored = (TASKS * values[0].nbytes + mask.bits.nbytes) / 1e6
    yield row(
        "storage_vs_peft_shira", [stored], [TASKS * theirs["bytes"] / 1e6], "MB", f"{version}: eight adapters", ">= 3"
    )
    yield row("swap_vs_peft_shira", times, theirs["swap"], "ms", f"{version}: unmerge one, merge another", ">= 1")


def _version(programs: Path, name: str) -> str:
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return f"{name} {call(programs / 'python', '-c', code)[1].strip()}"
