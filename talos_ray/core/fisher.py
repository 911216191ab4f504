"""Sensitivity: the diagonal of the Fisher information, from batched per-sample squared gradients.

    F_jj = E_x E_{y ~ p(y|x)} [ (d log p(y|x) / d theta_j)^2 ]

(TaLoS: Iurada, Ciccone, Tommasi, ICLR 2025, arXiv 2504.02620.) Labels are sampled from the model, and
gradients are squared per sample, before they are summed. One batched backward serves all samples: a hook
on a layer's output sees its gradient, multiplies it with the layer's input sample by sample, squares and
adds; the ordinary weight gradient is never built. Weights that no hook fits are scored by a loop.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from talos_ray.core.attention import attention
from talos_ray.core.fused import PLACES, kernels
from talos_ray.core.layout import Layout, is_rms_norm

log = logging.getLogger(__name__)

# Per-sample weight gradients of one layer held at once: a CPU squares them while they are in its cache, a GPU wants
# large products.
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
TOGETHER = 1 << 28  # weights whose scores are compared at once
BUDGET = 4 << 30  # bytes of activations that one backward may keep


@dataclass(frozen=True)
class Rounding:
    """What rounding may do to squared gradients: `near`, a share of one; `few`, a share of a tensor's weights that are
    further off (a ReLU that turns over); `noise`, a share of the model's largest one, below which a score is rounding
    alone."""

    near: float
    few: float
    noise: float


def _rounding(dtype: torch.dtype) -> Rounding:
    return Rounding(0.3, 0.01, 1e-5) if dtype == torch.bfloat16 else Rounding(1e-2, 0.0, 1e-12)


Score = Literal["log_prob", "logit"]
Batch = torch.Tensor | dict[str, torch.Tensor]
Forward = Callable[[Batch], torch.Tensor]

# What a layer's rule tells of one of its parameters: the gradients of a range of samples, [s, *shape], and, where there
# is a cheaper way than squaring those, the sum of all squares.
PerSample = Callable[[slice], torch.Tensor]
Shortcut = Callable[[], torch.Tensor]
Part = tuple[torch.Tensor | None, PerSample, Shortcut | None]
# (layer, its input, the gradient of its output) -> its parameters. Every rule takes a class of layers of its own.
Rule = Callable[[Any, torch.Tensor, torch.Tensor], Iterator[Part]]


def take(batch: Batch, index: slice | torch.Tensor) -> Batch:
    """The samples `index` (a slice or an index tensor) of a batch; samples lie along the first dimension."""
    if isinstance(batch, dict):
        return {name: values[index] for name, values in batch.items()}
    return batch[index]


def batch_len(batch: Batch) -> int:
    first = next(iter(batch.values())) if isinstance(batch, dict) else batch
    return len(first)


def sample_labels(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Labels [n] drawn from softmax(logits [n, C]) by inverse transform; `generator` lives on the CPU."""
    # In double precision: of a large vocabulary the shares of many classes lie below a float32's steps near 1.
    uniform = torch.rand(logits.shape[0], 1, generator=generator, dtype=torch.float64).to(logits.device)
    cumulative = logits.detach().double().softmax(-1).cumsum(-1)  # [n, C]
    # Rounding may leave the last sum below 1, and then a draw above it would name a class behind the last one.
    return (uniform > cumulative).sum(-1).clamp(max=logits.shape[-1] - 1)


@dataclass(frozen=True)
class Checked:
    """What the first batch showed about a module: reuse it for the same module and kind of input.

    Args:
        looped: weights that are scored one sample at a time, because no hook fits them.
        sample_bytes: what one sample's forward keeps for its backward.
    """

    looped: tuple[str, ...] = ()
    sample_bytes: int = 0


def _objective(logits: torch.Tensor, labels: torch.Tensor, score: Score) -> torch.Tensor:
    """Summed over samples, so that every sample's gradient keeps its own scale."""
    if score == "logit":
        return logits.gather(-1, labels[:, None]).sum()
    return F.cross_entropy(logits.float(), labels, reduction="sum")


class SquaredGradients:
    """Sums of per-sample squared gradients of the eligible weights of one module.

    Args:
        module: any model; it is put in eval mode (batch statistics would mix samples).
        layout: the eligible weights; the sums come in its order.
        checked: the result of an earlier check of the same module; without it the first batch is checked.
        budget: bytes of activations that one backward may keep; larger batches are cut into micro-batches.
        autocast: dtype of the products (bfloat16 on a GPU), or None for the model's own; sums stay float32.

    `sums` is float32 [P]; `samples` counts what was added; `checked.looped` names the weights that are scored one
    sample at a time because no hook fits them (the reason is logged once).
    """

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        checked: Checked | None = None,
        budget: int = BUDGET,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.module = module.eval()
        self.layout = layout
        eligible = set(layout.names)
        self.params = {name: p for name, p in module.named_parameters() if name in eligible}
        self.device = next(iter(self.params.values())).device
        self.samples = 0
        self.checked = checked
        self.budget = budget
        self.autocast = autocast

    @functools.cached_property
    def sums(self) -> torch.Tensor:
        return torch.zeros(self.layout.total, dtype=torch.float32, device=self.device)

    def add(
        self,
        forward: Forward,
        batch: Batch,
        generator: torch.Generator,
        score: Score = "log_prob",
    ) -> None:
        """Add a batch of n samples; `forward(batch)` gives logits [n, C], with a gradient path to the weights.

        Raises:
            ValueError: a logit is not finite (the base is broken, or the precision too low).
        """
        if self.checked is None:
            self.checked = self.check(forward, batch, score)
        looped = self.checked.looped
        hooked = set(self.layout.names).difference(looped)
        sums = self.layout.split(self.sums)

        def cast(inputs: Batch) -> torch.Tensor:
            with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                return forward(inputs)

        def choose(logits: torch.Tensor) -> torch.Tensor:
            return sample_labels(logits, generator)

        # As many samples go through one backward as the budget has room for: their activations are kept until then.
        n = batch_len(batch)
        size = max(1, self.budget // max(1, self.checked.sample_bytes))
        for start in range(0, n, size):
            part = take(batch, slice(start, start + size))
            self._add(cast, part, choose, score, sums, hooked, looped)
        self.samples += n

    def _add(
        self,
        forward: Forward,
        batch: Batch,
        choose: Callable[[torch.Tensor], torch.Tensor],
        score: Score,
        sums: dict[str, torch.Tensor],
        hooked: Collection[str],
        looped: Iterable[str],
    ) -> None:
        """Add a batch's squares to `sums`, of some weights by hooks and of some by a loop; `choose` picks the labels
        [n] from the logits [n, C]."""
        n = batch_len(batch)
        by_id = {id(p): name for name, p in self.params.items() if name in hooked}
        with _Hooks(self.module, by_id, sums, n) as hooks, torch.set_grad_enabled(bool(hooked)):
            logits = forward(batch)
            if not torch.isfinite(logits).all():
                raise ValueError(
                    "calibration met logits that are not finite; wanted finite logits; check the base, or use "
                    "precision float32"
                )
            labels = choose(logits.detach())
            objective = _objective(logits, labels, score)
            if objective.requires_grad:  # otherwise no hooked layer took part
                objective.backward()
            hooks.flush()
        # Behind the hooks, which freeze all parameters; with the same labels, so that all scores are of one draw.
        if looped:
            self._add_one_by_one(forward, batch, labels, score, sums, looped)

    def _add_one_by_one(
        self,
        forward: Forward,
        batch: Batch,
        labels: torch.Tensor,
        score: Score,
        sums: dict[str, torch.Tensor],
        names: Iterable[str],
    ) -> None:
        """Add the squares of some weights by a forward and a backward for each sample, which fits any module."""
        params = [self.params[name] for name in names]
        with _trainable(self.module, params):
            for i in range(batch_len(batch)):
                one = slice(i, i + 1)
                objective = _objective(forward(take(batch, one)), labels[one], score)
                # A weight that this sample does not reach (an expert that was not chosen) has no gradient.
                grads = torch.autograd.grad(objective, params, allow_unused=True)
                for name, grad in zip(names, grads, strict=True):
                    if grad is not None:
                        sums[name] += grad.float().square().reshape(-1)

    def check(self, forward: Forward, batch: Batch, score: Score = "log_prob") -> Checked:
        """Compare hooks and loop on the first samples of a batch; weights on which they differ have to be looped.

        It catches what hooks cannot know: samples that do not lie along the first dimension, a layer whose
        forward is bypassed, samples that influence each other. Scores of `TOGETHER` weights are held at once.
        """
        batch = take(batch, slice(0, 3))
        hookable = self._hookable()
        unknown = set(self.layout.names) - hookable
        with torch.no_grad():
            labels = forward(batch).argmax(-1)
        excess = dict.fromkeys(unknown, math.inf)
        largest = 0.0
        for part in self.layout.cut(TOGETHER):
            names = set(part.names) - unknown
            zeros = torch.zeros(part.total, device=labels.device)
            by_hook = part.split(zeros)
            by_loop = part.split(zeros.clone())
            choose = lambda _: labels  # noqa: E731 - the same labels for both, or they would not compare
            self._add(forward, batch, choose, score, sums=by_loop, hooked=(), looped=part.names)
            self._add(forward, batch, choose, score, sums=by_hook, hooked=names, looped=())
            for scores in by_loop.values():
                largest = max(largest, float(scores.max()))
            for name in names:
                excess[name] = _beyond(by_hook[name], by_loop[name], self.params[name].dtype)
        # Scores that ought to be 0 (a key's bias, which softmax ignores) are rounding errors, and agree with nothing.
        # What is not a number is looped, too: it is smaller than nothing.
        looped = []
        for name, difference in excess.items():
            noise = _rounding(self.params[name].dtype).noise * largest
            if not difference <= noise:
                looped.append(name)
        looped.sort()
        if looped:
            shown = ", ".join(looped[:4])
            log.warning("calibration scores %d tensors one sample at a time (slower): %s", len(looped), shown)
        return Checked(tuple(looped), self._kept(forward, batch, hookable) // batch_len(batch))

    def _hookable(self) -> set[str]:
        """Parameters of the layers that there is a rule for."""
        names: set[str] = set()
        for prefix, layer in self.module.named_modules():
            if _rule(layer) is not None or (isinstance(layer, nn.MultiheadAttention) and _plain_attention(layer)):
                names.update(f"{prefix}.{name}" if prefix else name for name, _ in layer.named_parameters())
        return names

    def _kept(self, forward: Forward, batch: Batch, hooked: Collection[str]) -> int:
        """Bytes that a forward keeps for its backward."""
        by_id = {id(p): name for name, p in self.params.items() if name in hooked}
        with _Hooks(self.module, by_id, {}, batch_len(batch), weigh=True) as hooks, torch.enable_grad():
            with torch.autograd.graph.saved_tensors_hooks(hooks.keep, lambda x: x):
                forward(batch)
            return hooks.bytes


def _beyond(by_hook: torch.Tensor, by_loop: torch.Tensor, dtype: torch.dtype) -> float:
    """How far two ways to score a tensor's weights differ beyond what rounding may do; not finite if a score is not."""
    rounding = _rounding(dtype)
    # What is small beside the tensor's largest score may be off by more than its own share.
    allowed = rounding.near * (by_loop + 1e-2 * by_loop.max())
    excess = (by_hook - by_loop).abs() - allowed
    # The few that are furthest off do not count.
    counted = len(excess) - int(rounding.few * len(excess))
    return float(excess.kthvalue(counted).values)


# ------------------------------------------------------------------------------------------- hooks


class _trainable:
    """Ask for gradients of `params` only, inside the block."""

    def __init__(self, module: nn.Module, params: Iterable[nn.Parameter]) -> None:
        self.module = module
        self.wanted = {id(p) for p in params}

    def __enter__(self) -> None:
        self.before = [(p, p.requires_grad) for p in self.module.parameters()]
        for p, _ in self.before:
            p.requires_grad_(id(p) in self.wanted)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for p, flag in self.before:
            p.requires_grad_(flag)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[n, ..., d] -> [n, t, d]: all positions of a sample in one dimension."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


class _Weighted(Protocol):
    """A layer with a weight, of one of the classes that every library writes anew."""

    weight: nn.Parameter


class _WeightedAndBiased(_Weighted, Protocol):
    bias: nn.Parameter


def _outer(left: torch.Tensor, right: torch.Tensor) -> tuple[PerSample, Shortcut | None]:
    """left^T right for each sample of [n, t, p] and [n, t, q], as fn(samples) -> [s, p, q], and a shortcut to the sum
    of squares."""
    short: Shortcut | None = None
    if left.shape[1] == 1:  # the square of an outer product is the product of the squares, one matmul for all
        short = lambda: left[:, 0].square().T @ right[:, 0].square()  # noqa: E731
    elif left.is_cuda and left.dtype in PLACES["cuda"]:
        compiled = kernels("cuda")
        if compiled is not None:  # which squares and adds without writing the products down
            short = lambda: compiled.squares(left, right)  # noqa: E731
    return lambda s: torch.bmm(left[s].transpose(1, 2), right[s]), short


def _linear_rule(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor, g: torch.Tensor) -> Iterator[Part]:
    """Per-sample gradients of y = x W^T + b, as (parameter, fn(samples) -> [s, *shape], shortcut to the sum of
    squares)."""
    x = _rows(x).to(g.dtype)
    g = _rows(g)
    per_sample, shortcut = _outer(g, x)
    yield weight, per_sample, shortcut
    yield bias, lambda s: g[s].sum(1), None


def _linear(m: nn.Linear, x: torch.Tensor, g: torch.Tensor) -> Iterator[Part]:
    return _linear_rule(m.weight, m.bias, x, g)


def _conv1d(m: _WeightedAndBiased, x: torch.Tensor, g: torch.Tensor) -> Iterator[Part]:
    """y = x W + b: the linear layer of transformers' GPT-2, whose weight lies the other way round, [in, out]."""
    x = _rows(x).to(g.dtype)
    g = _rows(g)
    per_sample, shortcut = _outer(x, g)
    yield m.weight, per_sample, shortcut
    yield m.bias, lambda s: g[s].sum(1), None


def _rms_norm(m: _Weighted, x: torch.Tensor, g: torch.Tensor) -> Iterator[Part]:
    """y = w x / rms(x), in the many classes that models write for it (Zhang and Sennrich, 2019)."""
    # transformers calls it variance_epsilon. Where it is None, torch takes the smallest step of the input's dtype.
    eps = getattr(m, "variance_epsilon", getattr(m, "eps", None)) or torch.finfo(x.dtype).eps
    x = _rows(x).float()  # [n, t, d]
    normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    yield m.weight, lambda s: (normal[s] * _rows(g)[s]).sum(1), None


def _layer_norm(m: nn.LayerNorm, x: torch.Tensor, g: torch.Tensor) -> Iterator[Part]:
    shape = m.normalized_shape
    if tuple(x.shape[-len(shape) :]) != tuple(shape):  # a subclass that takes channels first (timm, SqueezeBERT)
        x = x.movedim(1, -1)
        g = g.movedim(1, -1)
    # Before scale and shift, which are what is differentiated by: [n, positions, *shape].
    normal = F.layer_norm(x.float(), shape, None, None, m.eps)
    normal = normal.reshape(x.shape[0], -1, *shape)
    g = g.reshape(g.shape[0], -1, *shape)
    yield m.weight, lambda s: (normal[s] * g[s]).sum(1), None
    yield m.bias, lambda s: g[s].sum(1), None


def _conv2d(m: nn.Conv2d, x: torch.Tensor, g: torch.Tensor) -> Iterator[Part]:
    """For x [n, in, h, w] and g [n, out, rows, columns]."""
    padding = 0 if isinstance(m.padding, str) else m.padding  # a text is "valid" here: `_rule` takes no "same"
    # Patches overlap, so that they take a multiple of the input's memory: some samples' at a time.
    positions = g[0, 0].numel()
    patch_bytes = 4 * positions * m.groups * m.weight[0].numel()  # of one sample
    together = max(1, CHUNK_BYTES.get(x.device.type, 4 << 20) // patch_bytes)

    def gradients_of(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        patches = F.unfold(x.to(g.dtype), m.kernel_size, m.dilation, padding, m.stride)  # [s, i*kh*kw, positions]
        # Every group of channels is a product of its own: [s * groups, o, positions] times [s * groups, i*kh*kw, …]^T.
        left = g.flatten(2).unflatten(1, (m.groups, -1)).flatten(0, 1)
        right = patches.unflatten(1, (m.groups, -1)).flatten(0, 1)
        products = torch.bmm(left, right.transpose(1, 2))
        return products.view(-1, *m.weight.shape)

    def weight(s: slice) -> torch.Tensor:
        inputs = x[s].split(together)
        gradients = g[s].split(together)
        return torch.cat([gradients_of(*pair) for pair in zip(inputs, gradients, strict=True)])

    # A subclass that pads its input itself has other patches: nothing is told of it, and the check sends it to the
    # loop.
    reach = [dilation * (kernel - 1) for dilation, kernel in zip(m.dilation, m.kernel_size, strict=True)]
    around = (0, 0) if padding == 0 else m.padding
    made = tuple((x.shape[2 + i] + 2 * int(around[i]) - reach[i] - 1) // m.stride[i] + 1 for i in range(2))
    if made == tuple(g.shape[2:]):
        yield m.weight, weight, None
    yield m.bias, lambda s: g[s].flatten(2).sum(2), None


def _batch_norm(m: nn.modules.batchnorm._BatchNorm, x: torch.Tensor, g: torch.Tensor) -> Iterator[Part]:
    """In eval mode: every channel by the statistics that the model keeps."""
    mean = m.running_mean
    var = m.running_var
    assert mean is not None and var is not None  # `_rule` asks for `track_running_stats`
    normal = F.batch_norm(x.float(), mean.float(), var.float(), eps=m.eps)  # [n, channels, ...]
    yield m.weight, lambda s: (normal[s] * g[s]).flatten(2).sum(2), None
    yield m.bias, lambda s: g[s].flatten(2).sum(2), None


def _rule(m: nn.Module) -> Rule | None:
    """The hook rule of a module kind, or None. Subclasses that only cast dtypes keep their parent's rule."""
    if isinstance(m, nn.Linear):
        return _linear
    if isinstance(m, nn.LayerNorm) and m.elementwise_affine:
        return _layer_norm
    if isinstance(m, nn.Conv2d) and m.padding_mode == "zeros" and m.padding != "same":
        return _conv2d
    if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine and m.track_running_stats:
        return _batch_norm
    # Known by name, because every library writes its own class; the check against the loop catches a namesake.
    own = [name for name, _ in m.named_parameters(recurse=False)]
    if type(m).__name__ == "Conv1D" and own == ["weight", "bias"]:
        return _conv1d
    if is_rms_norm(m):
        return _rms_norm
    return None


def _plain_attention(m: nn.MultiheadAttention) -> bool:
    return bool(m._qkv_same_embed_dim) and m.bias_k is None and not m.add_zero_attn


class _Hooks:
    """Forward and backward hooks on every module that owns a wanted weight, for one backward."""

    def __init__(
        self, module: nn.Module, names: dict[int, str], sums: dict[str, torch.Tensor], samples: int, weigh: bool = False
    ) -> None:
        self.module = module
        self.names = names
        self.sums = sums
        self.samples = samples
        self.uses: dict[str, int] = {}  # how often a weight was used in this forward
        self.shared: dict[str, torch.Tensor] = {}  # per-sample gradients of weights used more than once
        self.handles: list[RemovableHandle] = []
        self.replaced: list[nn.Module] = []
        # Storage -> bytes kept for the backward. Counted only where it is asked for: it slows a forward down.
        self.kept: dict[int, int] | None = {} if weigh else None

    @property
    def bytes(self) -> int:
        """What the forward has kept for the backward; weights that are used several times need a gradient a sample."""
        # A layer keeps its weight, too, which is there anyway.
        own = [*self.module.parameters(), *self.module.buffers()]
        own_storage = {t.untyped_storage().data_ptr() for t in own}
        activations = 0
        for address, size in (self.kept or {}).items():
            if address not in own_storage:
                activations += size
        several = 0  # bytes of one gradient of each of these
        for p in self.module.parameters():
            name = self.names.get(id(p))
            if name is not None and self.uses.get(name, 0) > 1:
                several += p.numel() * 4
        return activations + several * self.samples

    def keep(self, x: torch.Tensor) -> torch.Tensor:
        # By storage: views of one tensor, which several layers keep, hold its memory once.
        if self.kept is not None:
            storage = x.untyped_storage()
            self.kept[storage.data_ptr()] = storage.nbytes()
        return x

    def __enter__(self) -> Self:
        # No parameter asks for a gradient of its own: a hook on a layer's output is all that a backward has to reach.
        self.frozen = _trainable(self.module, ())
        self.frozen.__enter__()
        for m in self.module.modules():
            if isinstance(m, nn.MultiheadAttention) and _plain_attention(m) and self._wants(m.parameters()):
                self._replace(m, attention(m, self._linear))
                continue
            rule = _rule(m)
            if rule is not None and self._wants(m.parameters(recurse=False)):
                self.handles.append(m.register_forward_hook(self._after(rule)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self.handles:
            handle.remove()
        for m in self.replaced:
            del m.forward
        self.frozen.__exit__(kind, error, trace)

    def _wants(self, params: Iterable[nn.Parameter]) -> bool:
        return any(id(p) in self.names for p in params)

    def _replace(self, m: nn.Module, forward: Callable[..., object]) -> None:
        m.forward = forward
        self.replaced.append(m)

    def flush(self) -> None:
        """Square what weights used several times have gathered: their uses add up before the square."""
        for name, grads in self.shared.items():
            self.sums[name] += grads.square_().sum(0).reshape(-1)

    def _after(self, rule: Rule) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
        foldable = rule not in (_conv2d, _batch_norm)

        def hook(m: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            x = self.keep(inputs[0].detach())

            def parts(g: torch.Tensor) -> Iterator[Part]:
                return rule(m, self._fold(x), self._fold(g)) if foldable else rule(m, x, g)

            return self._listen(output, m.parameters(recurse=False), parts, foldable)

        return hook

    def _fold(self, t: torch.Tensor) -> torch.Tensor:
        """[n * r, ...] -> [n, r * ...]: a sample that goes through a layer in r rows (one a possible answer) has one
        gradient."""
        if t.shape[0] == self.samples:
            return t
        folded: torch.Tensor = t.unflatten(0, (self.samples, -1))
        return folded.flatten(1, 2) if folded.ndim > 3 else folded

    def _listen(
        self,
        y: torch.Tensor,
        params: Iterable[torch.Tensor | None],
        rule: Callable[[torch.Tensor], Iterator[Part]],
        foldable: bool = False,
    ) -> torch.Tensor:
        for p in params:
            name = self.names.get(id(p))
            if name is not None:
                self.uses[name] = self.uses.get(name, 0) + 1
        # With every parameter frozen, the first layer's output has no gradient yet. The clone lets a model go on in
        # place, which is forbidden for a leaf.
        if not y.requires_grad:
            y = y.requires_grad_().clone()
        # To an output of another length nothing is added, and the check sends the weight to the loop.
        if y.shape[0] == self.samples or (foldable and y.shape[0] % self.samples == 0):
            y.register_hook(lambda g: self._collect(rule, g))
        return y

    @torch.no_grad()
    def _collect(self, rule: Callable[[torch.Tensor], Iterator[Part]], g: torch.Tensor) -> None:
        for p, per_sample, square in rule(g):
            name = self.names.get(id(p))
            if p is None or name is None:
                continue
            if self.uses[name] > 1:  # squared at the end, by `flush`
                grads = per_sample(slice(None)).float()
                self.shared[name] = self.shared[name] + grads if name in self.shared else grads
                continue
            if square is not None:
                self.sums[name] += square().float().reshape(-1)
                continue
            sample_bytes = 4 * p.numel()
            step = max(1, CHUNK_BYTES.get(g.device.type, 4 << 20) // sample_bytes)
            for start in range(0, self.samples, step):
                grads = per_sample(slice(start, start + step)).float()
                self.sums[name] += grads.square_().sum(0).reshape(-1)

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """One projection of an attention layer, listened to."""
        seen = self.keep(x.detach())
        return self._listen(F.linear(x, weight, bias), (weight, bias), lambda g: _linear_rule(weight, bias, seen, g))
