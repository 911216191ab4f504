"""On a GPU a step that is recorded and replayed gives the bits of the step as it is, and what cannot be recorded goes on without."""

import logging

import pytest
import torch
from torch import nn

from talos_ray.core import replay
from talos_ray.core.finetune import Plan, finetune
from talos_ray.core.layout import eligible_layout
from talos_ray.core.mask import mask_from_flags, select
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.core.replay import Replay

N, WIDTH, CLASSES, STEPS = 96, 40, 5, 12
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]


class Net(nn.Module):
    """Layers, attention and dropout; `trouble` is what its forward does besides."""

    def __init__(self, trouble=lambda x: x) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.drop, self.last, self.trouble = nn.Dropout(0.2), nn.Linear(WIDTH, CLASSES), trouble

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.trouble(self.norm(self.first(x)))
        x = self.drop(x + self.attention(x, x, x, need_weights=False)[0])
        return self.last(x.mean(1))


def data(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(N, 7, WIDTH, generator=generator), torch.randint(CLASSES, (N,), generator=generator)
    return x.to(device), y.to(device)


def train(device: str, granularity: str = "row", trouble=lambda x: x, length=lambda i: 7, named=False, **options):
    """Values after a short training, and its losses."""
    torch.manual_seed(0)
    module = Net(trouble).to(device).train()
    layout = eligible_layout(module)
    mask = mask_from_flags(layout, select(layout, "random", 0.3, granularity=granularity))
    optimizer = SparseAdamW(module, mask, lr=1e-2)
    plan = Plan("t", N, STEPS, 16, 1e-2, 3, seed=2, label_noise=0.2, classes=CLASSES)
    (x, y), calls = data(device), [0]

    def batch(index: torch.Tensor):
        calls[0] += 1
        part, labels = x[index.to(device), : length(calls[0])], y[index.to(device)]
        return ({"inputs": part, "labels": labels} if named else part), labels

    try:
        losses = finetune(optimizer, plan, lambda b: module(b["inputs"] if named else b), batch, **options)
    finally:
        optimizer.close()
    return optimizer.values.detach().clone(), losses


@pytest.fixture
def replayed(monkeypatch):
    """How often a recording was replayed."""
    times, call = [0], replay._Recording.__call__

    def counted(self, *args):
        times[0] += 1
        return call(self, *args)

    monkeypatch.setattr(replay._Recording, "__call__", counted)
    return times


@pytest.fixture
def as_it_is(monkeypatch):
    """Runs something with nothing recorded."""

    def run(*args, **named):
        with monkeypatch.context() as patch:
            patch.setattr(replay, "AS_IT_IS", 1 << 30)
            return train(*args, **named)

    return run


CASES = {
    "rows": {},
    "elements": {"granularity": "element"},
    "bfloat16": {"autocast": torch.bfloat16},
    "two backwards a step": {"micro_batch_size": 8},
    "two sizes of a part": {"micro_batch_size": 12},
    "named inputs": {"named": True},
    "two lengths": {"length": lambda i: 5 + i % 2},
}


@on_gpu
@pytest.mark.parametrize("case", CASES)
def test_a_replay_gives_the_bits_of_the_step_as_it_is(case, replayed, as_it_is):
    values, losses = train("cuda", **CASES[case])
    assert replayed[0] >= 4
    wanted, known = as_it_is("cuda", **CASES[case])
    assert torch.equal(values, wanted) and losses == known


HOST = {
    "waits for the GPU": lambda x: x * 2 if x.sum().item() > 1e9 else x,
    "draws on the host": lambda x: x * 2 if torch.rand(()) < 0.5 else x,
}


@on_gpu
@pytest.mark.parametrize("case", HOST)
def test_a_forward_that_decides_on_the_host_goes_on_as_it_is(case, replayed, as_it_is, caplog):
    caplog.set_level(logging.INFO, logger="talos_ray.core.replay")
    values, losses = train("cuda", trouble=HOST[case])
    assert replayed[0] == 0 and "kernel by kernel" in caplog.text
    wanted, known = as_it_is("cuda", trouble=HOST[case])
    assert torch.equal(values, wanted) and losses == known


@on_gpu
def test_a_forward_with_a_memory_of_its_own_is_found_out(replayed, caplog):
    caplog.set_level(logging.INFO, logger="talos_ray.core.replay")
    calls = [0]

    def growing(x):
        calls[0] += 1
        return x * calls[0]

    _, losses = train("cuda", trouble=growing)
    assert replayed[0] == 1 and "differs by" in caplog.text and len(losses) == STEPS


@on_gpu
def test_nothing_is_recorded_where_memory_is_short(monkeypatch, replayed, as_it_is):
    monkeypatch.setattr(replay, "ROOM", 1.1)
    values, losses = train("cuda")
    wanted, known = as_it_is("cuda")
    assert replayed[0] == 0 and torch.equal(values, wanted) and losses == known


@on_gpu
def test_only_so_many_shapes_are_recorded(monkeypatch):
    monkeypatch.setattr(replay, "MOST", 2)
    weight = torch.ones(3, device="cuda", requires_grad=True)
    weight.grad = torch.zeros_like(weight)

    def work(x, y):
        loss = (x @ weight * y).sum()
        loss.backward()
        return loss.detach()

    run = Replay(work, [weight.grad])
    for n in (4, 5, 6, 4, 5) * 5:
        x, y = torch.randn(n, 3, device="cuda"), torch.randn(n, device="cuda")
        weight.grad.zero_()
        assert torch.allclose(run(x, y), (x @ weight.detach() * y).sum(), atol=1e-5)
        assert torch.allclose(weight.grad, x.T @ y, atol=1e-5)
    assert len(run.recordings) == 2


@pytest.mark.parametrize("device", DEVICES)
def test_label_noise_and_dropout_are_the_same_in_every_run(device):
    one, other = train(device), train(device)
    assert torch.equal(one[0], other[0]) and one[1] == other[1]
