"""Compiled kernels give the numbers of the long way; composing gives its bits."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from talos_ray.core import fused
from talos_ray.core.blocks import gather
from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.fisher import Checked, SquaredGradients
from talos_ray.core.layout import eligible_layout
from talos_ray.core.mask import mask_from_flags, select
from talos_ray.core.optimizer import SparseAdamW

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
KINDS = ("rows", "elements", "whole tensors", "mixed")


def mask_of(module: nn.Module, kind: str):
    layout = eligible_layout(module)
    flags = select(layout, "random", 0.3, granularity="element" if kind == "elements" else "row")
    if kind == "whole tensors":
        flags.zero_()
    if kind in ("whole tensors", "mixed"):
        layout.split(flags)["2.weight"][:] = True
    if kind == "mixed":
        layout.split(flags)["0.weight"][5] ^= True
    return mask_from_flags(layout, flags)


def small(device: str, dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, 300), nn.LayerNorm(300), nn.Linear(300, 50)).to(device, dtype)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    monkeypatch.setattr(fused, "FEWEST", {"cpu": 0, "cuda": 0})
    monkeypatch.setattr(fused, "JOB", {"cpu": 700, "cuda": 700})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tasks", [1, 4, 7])
def test_composing_in_one_pass_gives_the_bits_of_the_long_way(device, kind, stored, tasks, monkeypatch):
    module = small(device)
    mask = mask_of(module, kind)
    values = [torch.randn(mask.k).to(stored) for _ in range(tasks)]
    deltas = [Delta(f"t{i}", v, "b", mask.fingerprint) for i, v in enumerate(values)]
    base = [p.detach().clone() for p in module.parameters()]
    fast = Composer(module, mask, deltas, "b")
    assert fast.fused is not None
    coefficients = [{f"t{i}": 0.3 - 0.17 * i for i in range(tasks)}, {"t0": 1.0}, {}]

    def found(composer: Composer) -> list[torch.Tensor]:
        out = []
        for c in coefficients:
            composer.compose(c)
            out += [p.detach().clone() for p in module.parameters()]
        return out

    one = found(fast)
    monkeypatch.setattr(fused, "kernels", lambda kind: None)
    slow = Composer(module, mask, deltas, "b")
    assert slow.fused is None
    assert all(map(torch.equal, one, found(slow)))
    assert all(map(torch.equal, base, module.parameters()))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_the_bits(threads):
    module, before = small("cpu"), torch.get_num_threads()
    mask = mask_of(module, "rows")
    composer = Composer(module, mask, [Delta("t", torch.ones(mask.k), "b", mask.fingerprint)], "b")
    wanted = gather(module, mask) + 0.5
    try:
        torch.set_num_threads(threads)
        composer.compose({"t": 0.5})
    finally:
        torch.set_num_threads(before)
    assert torch.equal(gather(module, mask), wanted)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_threads_that_torch_left_spinning_do_not_share_the_cores_with_ours():
    from talos_ray.core import kernels_cpu

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before, x = torch.get_num_threads(), torch.arange(1_000_000.0)
    try:
        torch.set_num_threads(3)
        expected = x.add(1)
        busy = threads()
        kernels_cpu._rest()()
        # The kernel lists a thread for a moment longer than the wait for its end takes.
        until = time.monotonic() + 10
        while (resting := threads()) > busy - 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert resting <= busy - 2
        assert torch.equal(x.add(1), expected) and threads() >= resting + 2  # and torch goes on as before
    finally:
        torch.set_num_threads(before)


def test_a_module_that_moved_is_written_where_it_is_now():
    module = small("cpu")
    mask = mask_of(module, "rows")
    composer = Composer(module, mask, [Delta("t", torch.ones(mask.k), "b", mask.fingerprint)], "b")
    composer.compose({"t": 1.0})
    old = [p.data for p in module.parameters()]
    for p in module.parameters():
        p.data = p.data.clone()
    composer.compose({"t": 2.0})
    assert not torch.equal(old[0], module[0].weight)
    assert torch.equal(gather(module, mask), composer.base + 2.0)


def test_what_the_kernels_do_not_know_goes_the_long_way():
    module = small("cpu", torch.bfloat16)
    mask = mask_of(module, "rows")
    assert Composer(module, mask, [Delta("t", torch.ones(mask.k), "b", mask.fingerprint)], "b").fused is None
    module = small("cpu")
    mixed = [Delta(str(d), torch.ones(mask.k, dtype=d), "b", mask.fingerprint) for d in (torch.float32, torch.bfloat16)]
    assert Composer(module, mask, mixed, "b").fused is None
    half = [Delta("h", torch.ones(mask.k, dtype=torch.float16), "b", mask.fingerprint)]
    assert Composer(module, mask, half, "b").fused is None


def test_a_compiler_that_is_missing_is_said_and_done_without(monkeypatch, caplog):
    monkeypatch.setitem(fused.KERNELS, "cpu", "a_compiler_that_is_not_here")
    fused.kernels.cache_clear()
    try:
        module = small("cpu")
        mask = mask_of(module, "rows")
        composer = Composer(module, mask, [Delta("t", torch.ones(mask.k), "b", mask.fingerprint)], "b")
        composer.compose({"t": 1.0})
        assert composer.fused is None and "a_compiler_that_is_not_here" in caplog.text
        assert torch.equal(gather(module, mask), composer.base + 1.0)
    finally:
        fused.kernels.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_a_step_writes_exactly_the_masked_weights(kind, dtype):
    module = small("cuda", dtype)
    mask = mask_of(module, kind)
    params = dict(module.named_parameters())

    def flat() -> torch.Tensor:
        return torch.cat([params[n].detach().reshape(-1) for n in mask.layout.names])

    before = flat()
    optimizer = SparseAdamW(module, mask, lr=1e-2)
    assert optimizer.write is not None
    module(torch.randn(9, 70, device="cuda", dtype=dtype)).square().sum().backward()
    optimizer.step()
    assert torch.equal(gather(module, mask), optimizer.values.detach().to(dtype))
    after, outside = flat(), ~mask.flags.cuda()
    assert torch.equal(after[outside], before[outside]) and not torch.equal(after, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("positions", [1, 7, 50, 130])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_on_a_gpu_squared_gradients_are_those_of_single_samples(positions, autocast):
    module = nn.Sequential(nn.Linear(40, 130), nn.ReLU(), nn.Linear(130, 24)).cuda()
    layout, x = eligible_layout(module), torch.randn(6, positions, 40, device="cuda")

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        return module(inputs).mean(1)

    hooked = SquaredGradients(module, layout, Checked(), autocast=autocast)
    looped = SquaredGradients(module, layout, Checked(looped=layout.names), autocast=autocast)
    for scores in (hooked, looped):
        scores.add(forward, x, torch.Generator().manual_seed(0))
    error = (hooked.sums - looped.sums).norm() / looped.sums.norm()
    assert float(error) < (1e-4 if autocast is None else 2e-2)


INTERPRETED = """
import contextlib, torch
torch.cuda.device = lambda device: contextlib.nullcontext()
from talos_ray.core import fused
from talos_ray.core.kernels_gpu import squares
for n, t, p, q in ((3, 50, 70, 30), (2, 7, 130, 64), (2, 100, 10, 100)):
    a, b = torch.randn(n, t, p), torch.randn(n, t, q)
    torch.testing.assert_close(squares(a, b), torch.bmm(a.transpose(1, 2), b).square().sum(0), rtol=1e-4, atol=1e-3)
fused.KERNELS, fused.FEWEST, fused.JOB = {"cpu": "talos_ray.core.kernels_gpu"}, {"cpu": 0}, {"cpu": 2000}
import test_kernels as own
from talos_ray.core.blocks import gather
for kind in own.KINDS:
    module = own.small("cpu")
    mask = own.mask_of(module, kind)
    values = [torch.randn(mask.k).bfloat16() for _ in range(3)]
    composer = own.Composer(module, mask, [own.Delta(str(i), v, "b", mask.fingerprint) for i, v in enumerate(values)], "b")
    assert composer.fused is not None
    composer.compose({"0": 0.5, "1": -0.3, "2": 1.1})
    wanted = composer.base + 0.5 * values[0].float() - 0.3 * values[1].float() + 1.1 * values[2].float()
    torch.testing.assert_close(gather(module, mask), wanted, rtol=1e-5, atol=1e-5)
"""


def test_a_gpus_kernels_by_tritons_interpreter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        cwd=__file__.rpartition("/")[0],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
