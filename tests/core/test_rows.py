"""Blocks and row gradients: the same numbers as the plain way, for every shape of mask, at the cost of the rows."""

import copy

import open_clip
import pytest
import torch
from small_models import IDS, IDS_THAT_END, bert, gpt2, t5
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from talos_ray.core.blocks import blocks, gather
from talos_ray.core.layout import eligible_layout
from talos_ray.core.mask import mask_from_flags, select
from talos_ray.core.optimizer import SparseAdamW
from talos_ray.core.rows import gradient_share, step_share

KINDS = ("elements", "rows", "corner", "one tensor", "everything")


def mask_of(module: nn.Module, kind: str, seed: int = 0):
    layout = eligible_layout(module)
    if kind == "elements":
        flags = select(layout, "random", 0.1, seed=seed)
    elif kind == "rows":
        flags = select(layout, "random", 0.3, granularity="row", seed=seed)
    elif kind == "corner":  # a few weights in some rows and some columns
        flags = torch.zeros(layout.total, dtype=torch.bool)
        for shape, part in zip(layout.shapes, layout.split(flags).values(), strict=True):
            matrix = part.view(shape[0], -1)
            matrix[: -(-shape[0] // 2) : 2, : -(-matrix.shape[1] // 2)] = True
            matrix[0, 0] = len(shape) == 1
    elif kind == "one tensor":
        wanted = max(layout.names, key=lambda n: layout.sizes[layout.names.index(n)])
        flags = torch.cat([torch.full((s,), n == wanted) for n, s in zip(layout.names, layout.sizes, strict=True)])
    else:
        flags = torch.ones(layout.total, dtype=torch.bool)
    return mask_from_flags(layout, flags)


def tower() -> nn.Module:
    torch.manual_seed(0)
    return open_clip.transformer.VisionTransformer(16, 8, 48, 2, 3, 4.0, output_dim=12).eval()


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(24, 3, 32, dropout=0.0, batch_first=True) for _ in range(2)]
    return nn.Sequential(*layers, nn.Linear(24, 5)).train()


def tied() -> nn.Module:
    """A linear layer whose weight is also used directly: its ordinary gradient must not get lost."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = nn.Linear(24, 24), nn.LayerNorm(24)

        def forward(self, x):
            return self.norm(self.inner(x)) @ self.inner.weight

    torch.manual_seed(0)
    return Tied()


def in_place() -> nn.Module:
    """A layer's output is turned and added to in place, as DeBERTa does."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(24, 24), nn.Linear(6, 5)

        def forward(self, x):
            y = self.inner(x).permute(0, 2, 1)
            y += 1
            return self.out(y.tanh())

    torch.manual_seed(0)
    return InPlace()


def head_of(model: nn.Module) -> nn.Module:
    """A transformers classifier as a module of its token ids alone."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.eval()

        def forward(self, ids):
            return self.model(input_ids=ids).logits

    return Head()


MODELS = {
    "bert": (lambda: head_of(bert()), lambda: IDS),
    "gpt2": (lambda: head_of(gpt2()), lambda: IDS),
    "t5": (lambda: head_of(t5()), lambda: IDS_THAT_END),
    "open_clip": (tower, lambda: torch.randn(4, 3, 16, 16)),
    "encoder": (encoder, lambda: torch.randn(4, 6, 24)),
    "in place": (in_place, lambda: torch.randn(4, 6, 24)),
    "tied": (tied, lambda: torch.randn(4, 24)),
    "deep input": (
        lambda: nn.Sequential(nn.Linear(24, 8), nn.GELU(), nn.Linear(8, 3)),
        lambda: torch.randn(2, 3, 5, 24),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_gathered_gradients_equal_autograd(name, kind):
    build, draw = MODELS[name]
    torch.manual_seed(1)
    module, x = build(), draw()
    plain = copy.deepcopy(module)
    plain(x).square().sum().backward()
    mask = mask_of(module, kind)
    params = dict(plain.named_parameters())
    expected = torch.cat([params[n].grad.view(-1)[i] for n, i in mask.indices.items()])
    optimizer = SparseAdamW(module, mask, lr=1e-3)
    for _ in range(2):  # two backwards add up, as in gradient accumulation
        module(x).square().sum().backward()
    torch.testing.assert_close(optimizer.values.grad, 2 * expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert all(p.grad is None for p in module.parameters())
    before = module(x)
    optimizer.close()
    torch.testing.assert_close(module(x), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_as_wide_as_the_mask_allows_and_move_the_right_values(kind):
    module = tower()
    mask = mask_of(module, kind)
    found, params = blocks(mask), dict(module.named_parameters())
    if kind == "rows":
        assert all(
            b.width == params[b.name][0].numel() for b in found if params[b.name].ndim > 1 and b.index is not None
        )
        assert any(b.width > 1 and b.index is not None for b in found)
    if kind in ("one tensor", "everything"):
        assert all(b.index is None for b in found)
    values = torch.arange(mask.k, dtype=torch.float32)
    with torch.no_grad():
        for b in found:
            b.scatter(params[b.name].data, values[b.place])
    assert torch.equal(gather(module, mask), values)
    untouched = dict(tower().named_parameters())
    for n, flags in mask.layout.split(mask.flags).items():
        outside = ~flags.view(params[n].shape)
        assert torch.equal(params[n][outside], untouched[n][outside])


@pytest.mark.parametrize(("rows", "columns"), [(20, 200), (200, 20), (100, 40), (200, 200)])
def test_a_tenth_of_the_rows_and_columns_costs_a_tenth_of_the_weight_gradient(rows, columns):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(200, 200, bias=False), nn.GELU(), nn.Linear(200, 200, bias=False))
    flags = torch.zeros(2, 200, 200, dtype=torch.bool)
    flags[:, -rows:, -columns:] = True
    mask = mask_from_flags(eligible_layout(module), flags.view(-1))

    def backward_flops(sparse: bool) -> int:
        x = torch.randn(50, 200, requires_grad=True)
        if sparse:
            SparseAdamW(module, mask, lr=1e-3)
        loss = module(x).sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        return counter.get_total_flops()

    dense, part = backward_flops(False), backward_flops(True)
    assert part == pytest.approx(dense * (1 + rows * columns / 200**2) / 2, rel=0.02)
    assert gradient_share(mask) == pytest.approx(2 * part / dense - 1, abs=0.02)


@pytest.mark.parametrize(("layers", "wanted"), [(1.0, 0.7), (0.5, 0.53)])
def test_backward_ends_where_the_open_layers_begin(layers, wanted):
    torch.manual_seed(0)

    def step_flops(layers: float | None) -> tuple[int, float]:
        module = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(20)))
        layout = eligible_layout(module)
        share = 1.0
        if layers is not None:
            mask = mask_from_flags(layout, select(layout, "random", 0.1, granularity="row", layers=layers))
            share = step_share(mask)
            SparseAdamW(module, mask, lr=1e-3)
        with FlopCounterMode(display=False) as counter:
            module(torch.randn(50, 100)).sum().backward()
        return counter.get_total_flops(), share

    (dense, _), (part, share) = step_flops(None), step_flops(layers)
    assert share == pytest.approx(wanted, abs=0.01) and share == pytest.approx(part / dense, abs=0.04)


def test_autocast_trains_float32_values():
    module, x = tower(), torch.randn(4, 3, 16, 16)
    optimizer = SparseAdamW(module, mask_of(module, "rows"), lr=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(x).float().square().mean()
    loss.backward()
    before = optimizer.values.detach().clone()
    optimizer.step()
    assert optimizer.values.dtype == torch.float32 and not torch.equal(before, optimizer.values)


def test_evaluation_and_foreign_calls_take_the_ordinary_way():
    layer, x = nn.MultiheadAttention(24, 3, batch_first=True).eval(), torch.randn(2, 5, 24)
    expected = layer(x, x, x)
    other = layer(x, x[:, :3], x[:, :3], need_weights=False)[0]
    SparseAdamW(layer, mask_of(layer, "rows"), lr=1e-3)
    out, weights = layer(x, x, x)
    torch.testing.assert_close(out, expected[0])
    torch.testing.assert_close(weights, expected[1])
    torch.testing.assert_close(layer(x, x[:, :3], x[:, :3], need_weights=False)[0], other)
    torch.testing.assert_close(layer(x, x, x, need_weights=False)[0], expected[0])


@pytest.mark.parametrize("kind", ["rows", "corner"])
def test_a_copy_of_a_module_in_training_is_on_its_own(kind):
    """As whoever averages weights, or keeps the best so far, makes one."""
    module, x = tower(), torch.rand(3, 3, 16, 16)
    optimizer = SparseAdamW(module, mask_of(module, kind), 1e-2)
    module(x).square().sum().backward()
    optimizer.step()
    kept = copy.deepcopy(module)
    plain = tower()
    plain.load_state_dict(kept.state_dict())
    module(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(kept(x), plain(x)) and not torch.equal(kept(x), module(x))
    kept(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert not optimizer.grad.any()
    wanted = dict(plain.named_parameters())
    for name, parameter in kept.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, wanted[name].grad)
