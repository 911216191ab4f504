"""Composing is exact: a function of the coefficients only, and back to the base's bits."""

import itertools
import random

import pytest
import torch
from torch import nn

from talos_ray.core.blocks import gather
from talos_ray.core.compose import Composer
from talos_ray.core.delta import Delta, make_delta
from talos_ray.core.layout import eligible_layout, fingerprint
from talos_ray.core.mask import mask_from_flags
from talos_ray.errors import MismatchError, TalosError

BASE = "base"


def world(dtype=torch.float32, values=torch.bfloat16):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30), nn.Linear(30, 5)).to(dtype)
    with torch.no_grad():
        module[0].weight[0, :10] = -0.0  # a base with negative zeros must come back with them
    layout = eligible_layout(module)
    mask = mask_from_flags(layout, torch.rand(layout.total) < 0.2)
    deltas = [Delta(n, torch.randn(mask.k).to(values), BASE, mask.fingerprint) for n in ("b", "a", "c")]
    return module, mask, deltas, Composer(module, mask, deltas, BASE)


def bits(module):
    return fingerprint(dict(module.state_dict()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("values", [torch.float32, torch.bfloat16])
def test_is_base_plus_the_weighted_sum(dtype, values):
    module, mask, deltas, composer = world(dtype, values)
    base = gather(module, mask).float()
    composer.compose({"a": 0.3, "b": -1.2, "c": 0.0})
    by_name = {d.task: d.values.float() for d in deltas}
    expected = (base.double() + 0.3 * by_name["a"].double() - 1.2 * by_name["b"].double()).to(dtype)
    torch.testing.assert_close(gather(module, mask), expected, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-6)


def test_same_coefficients_same_bits_whatever_came_before():
    module, _, _, composer = world()
    candidates = [dict(zip("abc", c, strict=True)) for c in itertools.product((0.0, 0.37, -1.0), repeat=3)]
    seen = {}
    for c in random.Random(1).choices(candidates, k=120):
        composer.compose(c)
        assert seen.setdefault(tuple(c.values()), bits(module)) == bits(module)
    assert len(set(seen.values())) == len(seen)


def test_rollback_and_remove_are_exact():
    module, _, _, composer = world()
    base = bits(module)
    composer.compose({"a": 1.0, "b": 1.0})
    both = bits(module)
    composer.compose({"a": 1.0})
    only_a = bits(module)
    composer.compose({"a": 1.0, "b": 1.0})
    assert bits(module) == both
    composer.compose({"a": 1.0, "b": 0.0})
    assert bits(module) == only_a
    composer.rollback()
    assert bits(module) == base


def test_weights_outside_the_mask_never_move():
    module, mask, _, composer = world()
    before = torch.cat([dict(module.named_parameters())[n].detach().reshape(-1) for n in mask.layout.names]).clone()
    composer.compose({"a": 2.0, "c": -3.0})
    after = torch.cat([dict(module.named_parameters())[n].detach().reshape(-1) for n in mask.layout.names])
    assert torch.equal(before[~mask.flags], after[~mask.flags])


def test_a_delta_of_another_base_or_mask_is_refused_with_both_names():
    module, mask, deltas, _ = world()
    stranger = Delta("a", deltas[0].values, "0123456789abcdef", mask.fingerprint)
    with pytest.raises(MismatchError, match=r"base 0123456789ab.*base"):
        Composer(module, mask, [stranger], BASE)
    with pytest.raises(MismatchError, match="mask fedcba987654"):
        Composer(module, mask, [Delta("a", deltas[0].values, BASE, "fedcba9876543210")], BASE)


def test_an_unknown_task_is_named():
    *_, composer = world()
    with pytest.raises(TalosError, match=r"'d'.*a, b, c"):
        composer.compose({"d": 1.0})


def test_the_stored_value_is_the_delta_and_must_be_finite():
    base, tuned = torch.tensor([1.0, 2.0]), torch.tensor([1.00390625, 2.5])
    delta = make_delta("t", tuned, base, "b", "m", torch.bfloat16, {})
    assert delta.values.dtype == torch.bfloat16 and delta.values.tolist() == [0.00390625, 0.5]
    assert delta.fingerprint != make_delta("t", tuned, base, "b", "n", torch.bfloat16, {}).fingerprint
    with pytest.raises(ValueError, match="diverged"):
        make_delta("t", torch.tensor([float("nan"), 0.0]), base, "b", "m", torch.bfloat16, {})
