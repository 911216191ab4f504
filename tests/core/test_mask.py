"""Selection is exact, breaks ties by canonical order, and survives packing."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from talos_ray.core import mask as mask_module
from talos_ray.core.layout import Layout, depths, eligible_layout, fingerprint
from talos_ray.core.mask import Mask, jaccard, mask_from_flags, mask_from_packed, round_keep, select, shares, smallest


def by_sorting(scores: torch.Tensor, k: int, largest: bool) -> torch.Tensor:
    order = torch.sort(scores, stable=True, descending=largest).indices[:k]
    return torch.zeros(len(scores), dtype=torch.bool).index_fill(0, order, True)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("chunk", [7, 1 << 22])
@pytest.mark.parametrize("kind", ["random", "ties", "zeros", "tiny", "infinite"])
def test_smallest_is_a_stable_sort(kind, chunk, largest, monkeypatch):
    monkeypatch.setattr(mask_module, "CHUNK", chunk)
    torch.manual_seed(0)
    scores = {
        "random": torch.rand(1000),
        "ties": torch.randint(0, 4, (1000,)).float(),
        "zeros": torch.zeros(1000),
        "tiny": torch.rand(1000) * 1e-42,
        "infinite": torch.where(torch.rand(1000) < 0.3, torch.inf, torch.rand(1000)),
    }[kind]
    for k in (0, 1, 99, 500, 999, 1000):
        assert torch.equal(smallest(scores, k, largest), by_sorting(scores, k, largest)), k


def test_negative_zero_counts_as_zero():
    assert smallest(torch.tensor([0.0, -0.0, 1.0]), 1).tolist() == [True, False, False]


@pytest.mark.parametrize("bad", [float("nan"), -1.0])
def test_scores_that_are_no_scores_are_refused(bad):
    with pytest.raises(ValueError, match="negative or NaN"):
        smallest(torch.tensor([0.1, bad, 0.2]), 1)


def test_k_outside_is_refused():
    with pytest.raises(ValueError, match="k=4 of 3"):
        smallest(torch.rand(3), 4)


LAYOUT = Layout(("a", "b", "c"), ((10, 10), (7,), (30, 2)))


@pytest.mark.parametrize(
    "strategy", ["least_sensitive", "least_sensitive_per_tensor", "most_sensitive", "random", "all"]
)
@pytest.mark.parametrize("keep", [0.003, 0.1, 0.5, 1.0])
def test_every_strategy_keeps_exactly_its_share(strategy, keep):
    flags = select(LAYOUT, strategy, keep, scores=torch.rand(LAYOUT.total))
    assert int(flags.sum()) == (LAYOUT.total if strategy == "all" else round(keep * LAYOUT.total))


def test_per_tensor_shares_differ_by_at_most_one():
    flags = select(LAYOUT, "least_sensitive_per_tensor", 0.1, scores=torch.rand(LAYOUT.total))
    for f, size in zip(LAYOUT.split(flags).values(), LAYOUT.sizes, strict=True):
        assert abs(int(f.sum()) - 0.1 * size) <= 1


def test_magnitude_takes_the_smallest_weights_of_the_base():
    module = nn.Linear(8, 8)
    layout = eligible_layout(module)
    flags = select(layout, "magnitude", 0.25, weights=dict(module.named_parameters()))
    values = torch.cat([dict(module.named_parameters())[n].detach().abs().view(-1) for n in layout.names])
    assert values[flags].max() <= values[~flags].min()


def test_random_is_a_function_of_the_seed():
    a, b, c = (select(LAYOUT, "random", 0.3, seed=s) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_shares_sum_to_k():
    for sizes in ([1, 1, 1], [100, 1, 7], [3] * 50):
        for k in range(sum(sizes) + 1):
            assert sum(shares(sizes, k)) == k


def test_packing_and_fingerprint():
    flags = torch.rand(LAYOUT.total) < 0.3
    mask = mask_from_flags(LAYOUT, flags)
    again = mask_from_packed(LAYOUT, mask.packed())
    assert torch.equal(again.flags, flags) and again.fingerprint == mask.fingerprint and again.k == int(flags.sum())
    flags[5] = ~flags[5]
    assert mask_from_flags(LAYOUT, flags).fingerprint != mask.fingerprint


def test_indices_are_positions_in_each_parameter():
    flags = torch.zeros(LAYOUT.total, dtype=torch.bool)
    flags[[3, 99, 107, 166]] = True
    mask = mask_from_flags(LAYOUT, flags)
    assert {n: i.tolist() for n, i in mask.indices.items()} == {"a": [3, 99], "c": [0, 59]}
    assert isinstance(mask, Mask) and jaccard(mask.bits, mask.bits) == 1.0


def test_rounds_end_at_keep():
    assert [round(round_keep(0.1, r, 4), 4) for r in range(1, 5)] == [0.5623, 0.3162, 0.1778, 0.1]


def test_embeddings_and_what_is_tied_to_them_are_not_eligible():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.hidden, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight
            self.token = nn.Parameter(torch.zeros(4))

    assert eligible_layout(Tied()).names == ("hidden.bias", "hidden.weight")


def test_fingerprint_sees_name_dtype_shape_and_bytes():
    base = {"w": torch.arange(6.0).view(2, 3)}
    marks = {
        fingerprint(t)
        for t in (base, {"v": base["w"]}, {"w": base["w"].view(3, 2)}, {"w": base["w"].double()}, {"w": base["w"] + 1})
    }
    assert len(marks) == 5
    assert fingerprint(base) == fingerprint({"w": base["w"].t().contiguous().t()})
    assert fingerprint({"w": torch.tensor([0.0])}) != fingerprint({"w": torch.tensor([-0.0])})


def test_rows_are_whole_fit_the_budget_and_are_the_least_sensitive():
    layout = Layout(("a", "b", "c"), ((4, 3), (5,), (2, 6)))
    scores = torch.arange(layout.total, dtype=torch.float32)  # rows of a: means 1, 4, 7, 10; b: 12..16; c: 19.5, 25.5
    flags = layout.split(select(layout, "least_sensitive", 10 / 29, granularity="row", scores=scores))
    assert (
        flags["a"].view(4, 3).tolist() == [[True] * 3] * 3 + [[False] * 3]
        and not flags["b"].any()
        and not flags["c"].any()
    )
    flags = layout.split(select(layout, "most_sensitive", 13 / 29, granularity="row", scores=scores))
    assert flags["c"].all() and flags["b"].tolist() == [False] * 4 + [True] and not flags["a"].any()
    per = layout.split(select(layout, "least_sensitive_per_tensor", 0.5, granularity="row", scores=scores))
    assert [int(f.sum()) for f in per.values()] == [6, 2, 6]


@pytest.mark.parametrize("keep", [0.1, 0.37, 1.0])
def test_random_rows_follow_the_seed_and_use_the_budget(keep):
    layout = Layout(("a", "b"), ((300, 40), (300,)))
    flags = [select(layout, "random", keep, granularity="row", seed=s) for s in (0, 0, 1)]
    assert torch.equal(flags[0], flags[1]) and (keep == 1.0 or not torch.equal(flags[0], flags[2]))
    assert round(keep * layout.total) - 40 < int(flags[0].sum()) <= round(keep * layout.total)
    assert set(flags[0][:12000].view(300, 40).sum(1).tolist()) <= {0, 40}


DEEP = Layout(
    ("blocks.0.w", "blocks.1.w", "blocks.2.w", "blocks.3.w", "stem"), ((10, 10), (10, 10), (4, 5), (10, 10), (8,))
)


def test_layers_are_closed_from_the_input_on():
    assert DEEP.closed(1.0) == set() and DEEP.room(1.0) == 1.0
    assert DEEP.closed(0.75) == {"stem", "blocks.0.w"} and DEEP.room(0.75) == 220 / 328
    assert DEEP.closed(0.01) == {*DEEP.names} - {"blocks.3.w"}
    assert Layout(("a", "b"), ((2,), (2,))).closed(0.5) == set()
    names = [
        "visual.layer3.0.conv1.weight",
        "visual.conv1.weight",
        "encoder.block.2.layer.1.k.weight",
        "h.11.ln_1.bias",
    ]
    assert list(depths(names).values()) == [3, 0, 2, 11]


@pytest.mark.parametrize("granularity", ["element", "row"])
@pytest.mark.parametrize(
    "strategy", ["least_sensitive", "least_sensitive_per_tensor", "most_sensitive", "random", "magnitude", "all"]
)
def test_only_open_layers_are_chosen_from(strategy, granularity):
    torch.manual_seed(0)
    scores = torch.rand(DEEP.total)
    weights = {n: torch.randn(s) for n, s in zip(DEEP.names, DEEP.shapes, strict=True)}
    how = {"granularity": granularity, "weights": weights}
    flags = select(DEEP, strategy, 0.2, layers=0.75, scores=scores.clone(), **how)
    shut = [flags[at] for at in (slice(0, 100), slice(320, 328))]
    assert not any(part.any() for part in shut)
    wanted = 220 if strategy == "all" else round(0.2 * DEEP.total)
    assert wanted - (10 if granularity == "row" else 0) <= int(flags.sum()) <= wanted
    if strategy in ("least_sensitive", "most_sensitive"):
        never = torch.inf if strategy == "least_sensitive" else 0.0
        scores[:100], scores[320:] = never, never
        assert torch.equal(flags, select(DEEP, strategy, 0.2, scores=scores, **how))
    if strategy != "all":
        with pytest.raises(ValueError, match="cannot keep 0.9 of 328 weights in 0.75 of the layers, which hold 220"):
            select(DEEP, strategy, 0.9, layers=0.75, scores=scores, **how)


def test_overlap_of_masks():
    a, b = (
        mask_from_flags(Layout(("w",), (10,)), torch.tensor([i in on for i in range(10)]))
        for on in ({0, 1, 9}, {1, 9, 4})
    )
    assert jaccard(a.bits, b.bits) == 0.5 and jaccard(a.bits, a.bits) == 1.0


@pytest.mark.parametrize(
    ("strategy", "granularity"),
    [("least_sensitive", "element"), ("least_sensitive", "row"), ("least_sensitive_per_tensor", "element")],
)
def test_selection_holds_little_more_than_the_scores(strategy, granularity):
    """Peak of the resident set, in a process of its own, over the bytes of 10^8 scores."""
    script = """
import re, torch
from pathlib import Path
import sys
from talos_ray.core.layout import Layout
from talos_ray.core.mask import select
def chosen(side, scores):
    layout = Layout(tuple(map(str, range(10))), ((side // 10, side),) * 10)
    return select(layout, sys.argv[1], 0.1, granularity=sys.argv[2], scores=scores)
torch.manual_seed(0)
chosen(3000, torch.rand(9_000_000))
scores = torch.rand(100_000_000)
held = lambda word: int(re.search(rf"{word}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
ground = held("VmRSS") - scores.nbytes
Path("/proc/self/clear_refs").write_text("5")
flags = chosen(10_000, scores)
print((held("VmHWM") - ground) / scores.nbytes, int(flags.sum()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, strategy, granularity], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ratio, k = done.stdout.split()
    assert k == "10000000" and 1.2 < float(ratio) < 1.35
