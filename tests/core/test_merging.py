"""Merge methods against plain references, value by value, and what composing makes of them."""

import numpy as np
import pytest
import torch
from torch import nn

from talos_ray.config import Merge
from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta
from talos_ray.core.layout import eligible_layout, fingerprint
from talos_ray.core.mask import mask_from_flags
from talos_ray.core.merging import METHODS, merged

TASKS = ("a", "b", "c")


def world(n_tasks: int = 3):
    """A small network, a mask over both of its matrices, and task vectors in bfloat16."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    layout, base = eligible_layout(net), fingerprint(net.state_dict())
    mask = mask_from_flags(layout, torch.rand(layout.total) < 0.6)
    deltas = {
        t: Delta(t, torch.randn(mask.k).bfloat16() * (i + 1), base, mask.fingerprint)
        for i, t in enumerate(TASKS[:n_tasks])
    }
    return net, mask, deltas, base


def top(size: np.ndarray, share: float) -> np.ndarray:
    """Positions of the largest share; of equal ones the first."""
    return np.argsort(-size, kind="stable")[: round(share * len(size))]


def reference(method: str, v: np.ndarray, sizes: list[int], how: Merge) -> np.ndarray:
    """Written as the papers put it, task by task and weight by weight."""
    n, k = v.shape
    out = np.zeros_like(v)
    if method == "linear":
        return v
    if method == "ties":
        for t in range(n):
            kept = top(abs(v[t]), how.density)
            out[t, kept] = v[t, kept]
        for j in range(k):
            elected = np.sign(out[:, j].sum())
            voters = [t for t in range(n) if out[t, j] != 0 and np.sign(out[t, j]) == elected]
            for t in range(n):
                out[t, j] = out[t, j] / len(voters) if t in voters else 0
        return out
    if method == "breadcrumbs":
        for t in range(n):
            start = 0
            for size in sizes:
                part = v[t, start : start + size]
                gone = top(abs(part), how.outliers)
                rest = abs(part).copy()
                rest[gone] = 0
                kept = np.setdiff1d(top(rest, how.density), gone)
                out[t, start + kept] = part[kept]
                start += size
        return out
    if method == "consensus":
        for j in range(k):
            total = v[:, j].sum()
            votes = sum(abs(v[t, j]) >= how.threshold * abs(total - v[t, j]) and v[t, j] != 0 for t in range(n))
            if votes >= min(how.agreement, n):
                out[:, j] = v[:, j]
        return out
    lengths = [np.sqrt((row.astype(np.float64) ** 2).sum()) for row in v]
    return np.stack([row * (np.mean(lengths) / length) for row, length in zip(v, lengths, strict=True)])


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"dare"}))
def test_against_a_plain_reference(method):
    _, mask, deltas, _ = world()
    how = Merge(method=method, density=0.4, outliers=0.1)
    found = torch.stack([d.values.float() for d in merged(deltas, mask, **how.model_dump()).values()]).numpy()
    v = np.stack([deltas[t].values.float().numpy() for t in TASKS])
    sizes = [int(f.sum()) for f in mask.layout.split(mask.flags).values()]
    np.testing.assert_allclose(found, reference(method, v, sizes, how), rtol=1e-5, atol=1e-7)
    if method in ("ties", "breadcrumbs", "consensus"):
        assert 0 < np.count_nonzero(found) < found.size


def test_dare_keeps_its_share_rescaled_and_by_seed():
    _, mask, deltas, _ = world()
    rows = torch.stack([METHODS["dare"](torch.ones(1, 20_000), names=[t], density=0.25, seed=0)[0] for t in TASKS])
    assert set(rows.unique().tolist()) == {0.0, 4.0} and abs(float(rows.mean()) - 1) < 0.03
    assert not torch.equal(rows[0], rows[1])  # each task loses weights of its own
    how = Merge(method="dare")
    a, b, other = (merged(deltas, mask, **h.model_dump()) for h in (how, how, Merge(method="dare", seed=1)))
    assert all(a[t].fingerprint == b[t].fingerprint != other[t].fingerprint for t in TASKS)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_at_zero_it_is_the_base_and_one_task_alone_is_its_delta_where_nothing_is_thinned_out(method):
    net, mask, deltas, base = world()
    composer = Composer(net, mask, list(merged(deltas, mask, **Merge(method=method).model_dump()).values()), base)
    composer.compose(dict.fromkeys(TASKS, 0.7))
    assert fingerprint(net.state_dict()) != base
    composer.compose(dict.fromkeys(TASKS, 0.0))
    assert fingerprint(net.state_dict()) == base
    marks = []
    for rows in (world(1)[2], merged(world(1)[2], mask, **Merge(method=method).model_dump())):
        net, mask, _, base = world(1)
        Composer(net, mask, list(rows.values()), base).compose({"a": 1.0})
        marks.append(fingerprint(net.state_dict()))
    assert (marks[0] == marks[1]) == (method in ("linear", "consensus", "normalized"))
