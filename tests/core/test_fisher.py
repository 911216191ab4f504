"""The batched sensitivity against the plainest reference: one backward a sample, then square."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from small_models import IDS, IDS_THAT_END, bert, gpt2, t5
from torch import nn

from talos_ray.core import fisher
from talos_ray.core.fisher import SquaredGradients, batch_len, sample_labels, take
from talos_ray.core.layout import eligible_layout


class Twice(nn.Module):
    """One weight used at two places, at different positions: the per-sample gradient is a sum of two uses."""

    def __init__(self):
        super().__init__()
        self.shared, self.out = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.out(torch.tanh(self.shared(torch.tanh(self.shared(x)))).mean(1))


class Bypassed(nn.Module):
    """A linear layer whose forward is never called, and a convolution that no hook knows."""

    def __init__(self):
        super().__init__()
        self.linear, self.conv, self.norm = nn.Linear(6, 6), nn.Conv1d(6, 5, 3), nn.GroupNorm(1, 5)

    def forward(self, x):
        x = torch.tanh(F.linear(x, self.linear.weight, self.linear.bias))
        return self.norm(self.conv(x.transpose(1, 2))).mean(2)


class TimeFirst(nn.Module):
    """Samples along the second dimension: hooks must notice and hand over."""

    def __init__(self):
        super().__init__()
        self.attention, self.linear = nn.MultiheadAttention(8, 2), nn.Linear(8, 4)

    def forward(self, x):
        x = x.transpose(0, 1)  # [t, n, d]
        return self.linear(self.attention(x, x, x)[0]).mean(0)


class BatchFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.norm, self.linear = (
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.LayerNorm(8),
            nn.Linear(8, 4),
        )
        self.causal = torch.triu(torch.full((5, 5), float("-inf")), diagonal=1)

    def forward(self, x):
        y = self.norm(x)
        return self.linear(self.attention(y, y, y, attn_mask=self.causal)[0] + x).mean(1)


class Pooled(nn.Module):
    """One learnt query that looks at all positions, as SigLIP pools; its convolution has no padding, and says so in a word."""

    def __init__(self):
        super().__init__()
        self.conv, self.attention = (
            nn.Conv2d(3, 8, 4, stride=4, padding="valid"),
            nn.MultiheadAttention(8, 2, batch_first=True),
        )
        self.query, self.linear = nn.Parameter(torch.randn(1, 2, 8)), nn.Linear(8, 4)

    def forward(self, x):
        seen = self.conv(x).flatten(2).transpose(1, 2)  # [n, 16, 8]
        return self.linear(self.attention(self.query.expand(len(x), -1, -1), seen, seen)[0]).mean(1)


class ChannelsFirst(nn.LayerNorm):
    """As timm and SqueezeBERT derive it."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class PadsItself(nn.Conv2d):
    """Padding is done before the convolution, on two sides only, as TensorFlow's "same" does: EfficientNet-Lite, timm."""

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def padding_itself():
    # Of a picture of 2 by 2 pixels there are no patches of 3 by 3 without the padding.
    return nn.Sequential(PadsItself(3, 6, 3, stride=2), nn.ReLU(), PadsItself(6, 8, 3, stride=2), nn.Flatten(), nn.Linear(8, 5))


class Resampled(nn.Module):
    """Attention whose keys are wider than its queries, as CoCa pools: there is no packed projection."""

    def __init__(self):
        super().__init__()
        self.inner, self.attention = nn.Linear(6, 6), nn.MultiheadAttention(4, 2, kdim=6, vdim=6, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 2, 4))

    def forward(self, x):
        y = self.inner(x)
        return self.attention(self.query.expand(len(x), -1, -1), y, y, need_weights=False)[0].mean(1)


def vision():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, dilation=2, groups=2),
        ChannelsFirst(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


def clip():
    model = open_clip.model.CLIP(
        16,
        {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        {"context_length": 8, "vocab_size": 40, "width": 16, "heads": 2, "layers": 1},
    )
    return model


def cases():
    yield "two_dimensional", nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)), torch.randn(6, 6), lambda m: m
    yield "used_twice", Twice(), torch.randn(6, 4, 6), lambda m: m
    yield "bypassed", Bypassed(), torch.randn(6, 7, 6), lambda m: m
    yield "time_first", TimeFirst(), torch.randn(6, 5, 8), lambda m: m
    yield "batch_first", BatchFirst(), torch.randn(6, 5, 8), lambda m: m
    yield "pooled", Pooled(), torch.randn(6, 3, 16, 16), lambda m: m
    yield "resampled", Resampled(), torch.randn(6, 5, 6), lambda m: m
    yield "vision", vision(), torch.randn(6, 3, 16, 16), lambda m: m
    yield "padding_itself", padding_itself(), torch.randn(6, 3, 4, 4), lambda m: m
    head = F.normalize(torch.randn(5, 16), dim=-1) * 5
    yield "clip", clip(), torch.randn(6, 3, 16, 16), lambda m: lambda x: m.encode_image(x, normalize=True) @ head.T
    yield "bert", bert(), {"input_ids": IDS}, lambda m: lambda b: m(**b).logits
    yield "t5", t5(), {"input_ids": IDS_THAT_END}, lambda m: lambda b: m(**b).logits
    yield "gpt2", gpt2(), {"input_ids": IDS}, lambda m: lambda b: m(**b).logits


def reference(module, layout, forward, batch, labels, score):
    params = [dict(module.named_parameters())[n] for n in layout.names]
    total = torch.zeros(layout.total)
    for i in range(len(labels)):
        logits = forward(take(batch, slice(i, i + 1)))
        value = torch.log_softmax(logits, -1)[0, labels[i]] if score == "log_prob" else logits[0, labels[i]]
        grads = torch.autograd.grad(value, params, allow_unused=True)
        total += torch.cat(
            [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(params, grads, strict=True)]
        ).square()
    return total


@pytest.mark.parametrize("score", ["log_prob", "logit"])
@pytest.mark.parametrize("name", [c[0] for c in cases()])
def test_equals_one_backward_a_sample(name, score):
    torch.manual_seed(3)
    _, module, batch, make = next(c for c in cases() if c[0] == name)
    module.eval()
    forward = make(module)
    layout = eligible_layout(module, "visual." if name == "clip" else "")
    assert layout.total > 0
    gradients = SquaredGradients(module, layout)
    gradients.add(forward, batch, torch.Generator().manual_seed(7), score)
    with torch.no_grad():
        labels = sample_labels(forward(batch), torch.Generator().manual_seed(7))
    expected = reference(module, layout, forward, batch, labels, score)
    assert gradients.samples == 6
    for n, value in layout.split(gradients.sums).items():
        wanted = layout.split(expected)[n]
        torch.testing.assert_close(
            value, wanted, rtol=1e-5, atol=1e-6 * float(wanted.max()) + 1e-12, msg=lambda m, n=n: f"{n}: {m}"
        )


@pytest.mark.parametrize("together", [fisher.TOGETHER, 50])
def test_hooks_serve_the_kinds_that_matter_and_the_rest_is_named(together, monkeypatch):
    """However many weights are compared at once."""
    monkeypatch.setattr(fisher, "TOGETHER", together)
    for name, looped in (
        ("clip", set()),
        ("two_dimensional", set()),
        ("used_twice", set()),
        ("batch_first", set()),
        ("pooled", set()),
        ("vision", set()),
        ("padding_itself", {"0.weight", "2.weight"}),
        ("resampled", {f"attention.{n}" for n, _ in Resampled().attention.named_parameters()}),
        ("bert", set()),
        ("t5", set()),
        ("gpt2", set()),
        ("bypassed", {"linear.weight", "linear.bias", "conv.weight", "conv.bias", "norm.weight", "norm.bias"}),
    ):
        torch.manual_seed(3)
        _, module, batch, make = next(c for c in cases() if c[0] == name)
        gradients = SquaredGradients(module, eligible_layout(module, "visual." if name == "clip" else ""))
        gradients.add(make(module), batch, torch.Generator().manual_seed(7))
        assert set(gradients.checked.looped) == looped, name


def test_the_module_is_left_as_it_was():
    torch.manual_seed(3)
    module = clip()
    before = {n: p.clone() for n, p in module.named_parameters()}
    head = torch.randn(5, 16)
    SquaredGradients(module, eligible_layout(module, "visual.")).add(
        lambda x: module.encode_image(x) @ head.T, torch.randn(4, 3, 16, 16), torch.Generator()
    )
    assert all(torch.equal(before[n], p) and p.requires_grad and p.grad is None for n, p in module.named_parameters())
    assert not any(m._forward_hooks or "forward" in vars(m) for m in module.modules())


def test_micro_batches_add_up():
    torch.manual_seed(3)
    module, x = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)), torch.randn(12, 6)
    sums = []
    for parts in ((x,), x.split(5)):
        gradients, generator = SquaredGradients(module, eligible_layout(module)), torch.Generator().manual_seed(1)
        for part in parts:
            gradients.add(module, part, generator)
        sums.append(gradients.sums)
    torch.testing.assert_close(*sums, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["clip", "bert", "used_twice"])
def test_a_byte_budget_cuts_the_batch_and_changes_nothing_else(name):
    torch.manual_seed(3)
    _, module, batch, make = next(c for c in cases() if c[0] == name)
    forward, layout, sizes = make(module.eval()), eligible_layout(module, "visual." if name == "clip" else ""), []

    def watched(part):
        sizes.append(batch_len(part))
        return forward(part)

    whole = SquaredGradients(module, layout)
    whole.add(watched, batch, torch.Generator().manual_seed(7))
    assert sizes[-1] == 6 and whole.checked.sample_bytes > 0
    sizes.clear()
    small = SquaredGradients(module, layout, whole.checked, budget=2 * whole.checked.sample_bytes)
    small.add(watched, batch, torch.Generator().manual_seed(7))
    assert sizes == [2, 2, 2] and small.samples == 6
    torch.testing.assert_close(small.sums, whole.sums, rtol=1e-4, atol=1e-6 * float(whole.sums.max()))


def test_the_bytes_a_sample_keeps_are_counted():
    """Of y = W2 tanh(W1 x): x and tanh(W1 x), which both a layer and the tanh keep, and what the loss keeps."""
    module = nn.Sequential(nn.Linear(300, 500, bias=False), nn.Tanh(), nn.Linear(500, 5, bias=False))
    gradients = SquaredGradients(module, eligible_layout(module))
    gradients.add(module, torch.randn(3, 300), torch.Generator().manual_seed(0))
    assert 4 * (300 + 500) <= gradients.checked.sample_bytes <= 4 * (300 + 2 * 500 + 40)


def test_autocast_changes_the_products_and_keeps_float32_sums():
    torch.manual_seed(3)
    _, module, batch, make = next(c for c in cases() if c[0] == "clip")
    layout, scores = eligible_layout(module, "visual."), []
    for dtype in (None, torch.bfloat16):
        gradients = SquaredGradients(module, layout, autocast=dtype)
        gradients.add(make(module), batch, torch.Generator().manual_seed(7))
        assert gradients.checked.looped == () and gradients.sums.dtype == torch.float32
        scores.append(gradients.sums)
    assert not torch.equal(*scores)
    assert float(torch.corrcoef(torch.stack(scores).log1p())[0, 1]) > 0.99


def test_labels_follow_the_models_own_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(60_000, 3)
    labels = sample_labels(logits, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.bincount(labels) / 60_000, logits[0].softmax(-1), atol=0.01, rtol=0)


def test_logits_that_are_not_finite_are_refused():
    module = nn.Linear(4, 3)
    with torch.no_grad():
        module.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        SquaredGradients(module, eligible_layout(module)).add(module, torch.randn(4, 4), torch.Generator())
