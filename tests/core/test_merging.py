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
from talos_ray.core.merging import METHODS, SUBSPACES, coefficients_of, layer_groups, merged, task_of

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
    kept, rows = merged(deltas, mask, **how.model_dump())
    assert kept is mask
    found = torch.stack([d.values.float() for d in rows.values()]).numpy()
    v = np.stack([deltas[t].values.float().numpy() for t in TASKS])
    sizes = [int(f.sum()) for f in mask.layout.split(mask.flags).values()]
    np.testing.assert_allclose(found, reference(method, v, sizes, how), rtol=1e-5, atol=1e-7)
    if method in ("ties", "breadcrumbs", "consensus"):
        assert 0 < np.count_nonzero(found) < found.size


def dense(mask, rows, name: str) -> np.ndarray:
    """One tensor of every task's row, [T, ...]."""
    start, found = 0, []
    for n, flags in mask.layout.split(mask.flags).items():
        size, shape = int(flags.sum()), mask.layout.shapes[mask.layout.names.index(n)]
        for d in rows.values() if n == name else ():
            whole = torch.zeros(len(flags))
            whole[flags] = d.values.float()[start : start + size]
            found.append(whole.view(shape).numpy().astype(np.float64))
        start += size
    return np.stack(found)


def nearest(x: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    return u @ vt


def by_the_paper(method: str, deltas: np.ndarray, common: float) -> np.ndarray:
    """The merged matrix at coefficients of 1, as the paper's algorithm builds it; it knows no rows."""
    tasks, (u, s, vt) = len(deltas), np.linalg.svd(deltas.sum(0), full_matrices=False)
    if method == "tsv":
        n, parts = len(s) // tasks, [np.linalg.svd(d, full_matrices=False) for d in deltas]
        left, right = (
            nearest(np.concatenate(x, 1)) for x in ([p[0][:, :n] for p in parts], [p[2][:n].T for p in parts])
        )
        return left @ np.diag(np.concatenate([p[1][:n] for p in parts])) @ right.T
    if method == "iso_c":
        return s.mean() * u @ vt
    own = (len(s) - round(common * len(s))) // tasks
    k = len(s) - own * tasks
    rest = [np.linalg.svd(d - u[:, :k] @ u[:, :k].T @ d, full_matrices=False) for d in deltas]
    left = nearest(np.concatenate([u[:, :k], *(p[0][:, :own] for p in rest)], 1))
    right = nearest(np.concatenate([vt[:k].T, *(p[2][:own].T for p in rest)], 1))
    return np.concatenate([s[:k], *(p[1][:own] for p in rest)]).mean() * left @ right.T


@pytest.mark.parametrize("kind", ["elements", "rows"])
@pytest.mark.parametrize("method", sorted(SUBSPACES))
def test_subspaces_add_up_to_what_the_papers_define(method, kind):
    net = nn.Sequential(nn.Linear(18, 12), nn.Linear(12, 15))
    layout, base = eligible_layout(net), fingerprint(net.state_dict())
    torch.manual_seed(0)
    if kind == "rows":
        flags = torch.cat([(torch.rand(s[0]) < 0.8).repeat_interleave(int(np.prod(s[1:]))) for s in layout.shapes])
    else:
        flags = torch.rand(layout.total) < 0.5
    mask = mask_from_flags(layout, flags)
    deltas = {t: Delta(t, torch.randn(mask.k), base, mask.fingerprint) for t in TASKS}
    wide, rows = merged(deltas, mask, **Merge(method=method, common=0.6).model_dump())
    assert (wide.fingerprint == mask.fingerprint) == (kind == "rows") and bool(
        (wide.flags | ~mask.flags).all()
    )  # it may leave the mask, never lose it
    for name in ("0.weight", "1.weight"):
        before, after = dense(mask, deltas, name), dense(wide, rows, name)
        there = (before != 0).any((0, 2))
        wanted = by_the_paper(method, before[:, there], 0.6)
        np.testing.assert_allclose(after.sum(0)[there], wanted, atol=2e-5 * abs(wanted).max())
        assert not after[:, ~there].any()
    for name in ("0.bias", "1.bias"):
        assert np.array_equal(dense(mask, deltas, name), dense(wide, rows, name))  # vectors stay as they are


@pytest.mark.parametrize("groups", [2, {"weights": "weight$"}])
def test_groups_of_layers_add_up_to_the_task_and_can_be_turned_apart(groups):
    net, mask, deltas, base = world()
    kept, rows = merged(deltas, mask, groups=groups)
    names = ("0", "1") if groups == 2 else ("rest", "weights")
    assert kept is mask and list(rows) == [f"{t}@{g}" for t in TASKS for g in names]
    plain, grouped = Composer(net, mask, list(deltas.values()), base), None
    plain.compose({"a": 0.3, "c": -0.7})
    whole = fingerprint(net.state_dict())
    plain.rollback()
    grouped = Composer(net, mask, list(rows.values()), base)
    alike = {r: {"a": 0.3, "c": -0.7}[task_of(r)] for r in rows if task_of(r) != "b"}
    grouped.compose(alike)
    assert fingerprint(net.state_dict()) == whole  # one coefficient for all groups: the same bits
    grouped.rollback()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    grouped.compose({f"a@{names[1]}": 1.0})
    moved = {n for n, t in net.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == ({"1.weight", "1.bias"} if groups == 2 else {"0.weight", "1.weight"})
    assert coefficients_of(alike, "a") == dict.fromkeys(names, 0.3) and coefficients_of({"a": 1.0}, "a") == {"": 1.0}


def test_depth_is_the_first_number_of_a_name():
    names = ["visual.conv1.weight", *(f"visual.blocks.{i}.mlp.weight" for i in range(6)), "visual.ln_post.weight"]
    assert list(layer_groups(names, 3).values()) == ["0", "0", "0", "1", "1", "2", "2", "0"]
    assert set(layer_groups(["a.weight", "b.bias"], 4).values()) == {"0"}


def test_dare_keeps_its_share_rescaled_and_by_seed():
    _, mask, deltas, _ = world()
    rows = torch.stack([METHODS["dare"](torch.ones(1, 20_000), names=[t], density=0.25, seed=0)[0] for t in TASKS])
    assert set(rows.unique().tolist()) == {0.0, 4.0} and abs(float(rows.mean()) - 1) < 0.03
    assert not torch.equal(rows[0], rows[1])  # each task loses weights of its own
    how = Merge(method="dare")
    a, b, other = (merged(deltas, mask, **h.model_dump())[1] for h in (how, how, Merge(method="dare", seed=1)))
    assert all(a[t].fingerprint == b[t].fingerprint != other[t].fingerprint for t in TASKS)


@pytest.mark.parametrize("method", sorted([*METHODS, *SUBSPACES]))
def test_at_zero_it_is_the_base_and_one_task_alone_is_its_delta_where_nothing_is_thinned_out(method):
    net, mask, deltas, base = world()
    kept, rows = merged(deltas, mask, **Merge(method=method).model_dump())
    composer = Composer(net, kept, list(rows.values()), base)
    composer.compose(dict.fromkeys(TASKS, 0.7))
    assert fingerprint(net.state_dict()) != base
    composer.compose(dict.fromkeys(TASKS, 0.0))
    assert fingerprint(net.state_dict()) == base
    marks = []
    for kept, rows in ((mask, world(1)[2]), merged(world(1)[2], mask, **Merge(method=method).model_dump())):
        net, mask, _, base = world(1)
        Composer(net, kept, list(rows.values()), base).compose({"a": 1.0})
        marks.append(fingerprint(net.state_dict()))
    if method != "tsv":  # one task's singular vectors make the same delta, but for rounding
        assert (marks[0] == marks[1]) == (method in ("linear", "consensus", "normalized"))
