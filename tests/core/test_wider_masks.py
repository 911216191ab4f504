"""An edit on a wider mask is the same edit, and a checkpoint loses nothing there."""

import pytest
import torch
from torch import nn

from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta, carried, changed, imported, make_delta
from talos_ray.core.layout import eligible_layout
from talos_ray.core.mask import mask_from_flags, select, widened
from talos_ray.core.segments import Blend, segments_of
from talos_ray.errors import MismatchError


def world(granularity="row"):
    """A network whose base has zeros of both signs, a mask of it, and flags of further weights."""
    torch.manual_seed(0)
    module = nn.ModuleDict({"0": nn.Linear(7, 9), "1": nn.Linear(9, 5), "2": nn.LayerNorm(5)})
    for parameter in module.parameters():
        parameter.data.view(-1)[::3] = -0.0
        parameter.data.view(-1)[1::5] = 0.0
    layout = eligible_layout(module)
    mask = mask_from_flags(layout, select(layout, "random", 0.3, granularity=granularity), {"strategy": "random"})
    return module, mask, widened(mask, torch.rand(layout.total) < 0.3)


def bits(module) -> list[bytes]:
    return [parameter.detach().numpy().tobytes() for parameter in module.parameters()]


@pytest.mark.parametrize("mask_of", ["row", "element"])
@pytest.mark.parametrize("granularity", [None, "group", "tensor", "row"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_carried_over_composes_to_the_same_bits(mask_of, granularity, dtype):
    module, mask, wider = world(mask_of)
    deltas = [Delta(task, torch.randn(mask.k).to(dtype), "base", mask.fingerprint) for task in "ab"]
    count = segments_of(mask, granularity, 2).count if granularity else 1
    values = {task: torch.rand(count) + 0.1 if granularity else 0.7 for task in "ab"}
    blend = Blend(values, granularity, 2)
    wide = blend.widened(mask, wider)
    for tasks in ("a", "b", "ab"):
        composer = Composer(module, mask, deltas, "base", blend.segments(mask))
        composer.compose(blend.only(tasks).values)
        narrow = bits(module)
        composer.rollback()
        composer = Composer(module, wider, [carried(d, mask, wider) for d in deltas], "base", wide.segments(wider))
        composer.compose(wide.only(tasks).values)
        assert bits(module) == narrow
        composer.rollback()
    with pytest.raises(MismatchError, match="belongs to mask"):
        carried(carried(deltas[0], mask, wider), mask, wider)


def test_segments_of_new_weights_alone_have_the_mean_of_their_task():
    _, mask, _ = world("row")
    everything = widened(mask, torch.ones(mask.layout.total, dtype=torch.bool))
    own = Blend({"a": torch.rand(segments_of(mask, "row").count)}, "row")
    wide = own.widened(mask, everything)
    new = sorted(set(wide.values["a"].tolist()) - set(own.values["a"].tolist()))
    assert new == [pytest.approx(own.means(mask)["a"])] and set(own.values["a"].tolist()) < set(wide.values["a"].tolist())
    assert len(wide.values["a"]) == segments_of(everything, "row").count


def test_the_wider_mask_holds_all_that_a_checkpoint_changed_and_knows_the_narrower():
    module, mask, wider = world()
    base = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    tuned = {name: weights + (torch.rand_like(weights) < 0.4) * torch.randn_like(weights) for name, weights in base.items()}
    flags = changed(tuned, base, mask.layout)
    assert torch.equal(flags, torch.cat([(tuned[n] != base[n]).flatten() for n in mask.layout.names]))
    whole = widened(mask, flags)
    assert torch.equal(whole.flags, mask.flags | flags) and whole.narrower == [mask.fingerprint]
    _, _, before = imported(tuned, base, mask)
    after, own, lost = imported(tuned, base, whole)
    assert before > 0.3 and lost == pytest.approx(0, abs=1e-12)
    delta = make_delta("a", after, own, "base", whole.fingerprint, torch.float32, {})
    Composer(module, whole, [delta], "base").compose({"a": 1.0})
    assert all(torch.allclose(p, tuned[name], rtol=1e-6, atol=1e-7) for name, p in module.named_parameters())
    twice = widened(whole, wider.flags)
    assert twice.narrower == [mask.fingerprint, whole.fingerprint] and twice.info["strategy"] == "random, widened"
    assert widened(mask, mask.flags).fingerprint == mask.fingerprint  # nothing more is the same mask
